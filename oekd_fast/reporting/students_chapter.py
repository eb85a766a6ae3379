"""The table of students: sizes, accuracies in the family and alone, gains, and the paper's results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from oekd_fast.common.quantities import three_digits
from oekd_fast.common.spread import spread
from oekd_fast.figures.sizes import of_students
from oekd_fast.reporting import page
from oekd_fast.reporting.finished_runs import Run
from oekd_fast.reporting.gains import Gains
from oekd_fast.reporting.names import ENSEMBLE, colored_name
from oekd_fast.reporting.predictions import student_names

_GAIN = (
    "Gain is the accuracy in the family minus that of the same student trained alone, in points ± its standard error; "
    "the relative gain is in percent of the accuracy alone."
)


def students_chapter(runs: Sequence[Run], gains: Gains | None, paper: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield the chapter as HTML.

    Args:
        runs: runs that differ in the seed only.
        gains: gains of the students; None if they were not trained alone.
        paper: results of the paper, if it has any for this family.
    """
    config, first = runs[0].config, runs[0].summary
    summaries = [run.summary for run in runs]
    seeds = ", ".join(str(run.config.seed) for run in runs)
    numbers = f"One run (seed {seeds})"
    if len(runs) > 1:
        numbers = f"Mean ± standard deviation of {len(runs)} runs (seeds {seeds})"
    yield page.paragraph(
        f"{numbers}, epochs: {config.epochs}. Accuracy is top-1, in percent, on {first['test_images']:,} test "
        "images at the epoch selected on validation images." + ("" if gains is None else f" {_GAIN}")
    )
    columns = _columns(first, summaries, gains)
    flipped = of_students(summaries, "accuracy_with_flips")
    if paper:
        alone, family = _paper_cells(paper)
        columns |= {"paper: alone %": alone, "paper: in the family %": family}
    yield page.table(list(columns), zip(*columns.values(), strict=True))
    if gains is None:
        yield page.note("Students trained alone are not shown, since not every run has baselines (--baseline).")
    if paper:
        divisor = config.width_rule.divisor
        yield page.paragraph(
            "The paper's results (Walawalkar et al., ECCV 2020) are means over five runs at the best test epoch, "
            "drawn at the sizes of the networks of these runs."
            + (f" Its students' channels are not rounded to multiples of {divisor}." if divisor > 1 else ""),
            "small",
        )
    if flipped:
        yield page.paragraph(
            "With flips: accuracy of the mean logits of each test image and its mirror image (--test-flips).", "small"
        )


def _columns(
    first: Mapping[str, Any], summaries: Sequence[Mapping[str, Any]], gains: Gains | None
) -> dict[str, list[Any]]:
    """Return the cells of each column by its heading: a cell of each student, then that of the ensemble."""
    students = first["students"]
    count, size = len(students), first.get("ensemble")  # older versions did not write the size of the ensemble
    ensemble = spread([summary["ensemble_accuracy"] for summary in summaries])
    columns = {
        "network": [colored_name(name) for name in (*student_names(count), ENSEMBLE)],
        "parameters": [f"{student['parameters']:,}" for student in students],
        "size %": [f"{student['relative_size']:.2f}" for student in students],
        "MFLOPs": [three_digits(student["flops"] / 1e6) for student in students],
        "alone %": of_students(summaries, "baseline_accuracy"),
        "in the family %": [*of_students(summaries, "accuracy"), ensemble],
        "gain, points": [] if gains is None else [*gains.differences],
        "significance": [] if gains is None else [*map(gains.verdict, range(count))],
        "relative gain %": of_students(summaries, "relative_gain"),
    }
    columns["parameters"].append(f"{size['parameters']:,}" if size else "")
    columns["size %"].append(f"{100 * size['parameters'] / students[0]['parameters']:.2f}" if size else "")
    columns["MFLOPs"].append(three_digits(size["flops"] / 1e6) if size else "")
    flipped = of_students(summaries, "accuracy_with_flips")
    flipped_alone = of_students(summaries, "baseline_accuracy_with_flips")
    flipped_ensembles = [summary.get("ensemble_accuracy_with_flips") for summary in summaries]
    if flipped and None not in flipped_ensembles:
        columns["with flips: alone %"] = flipped_alone
        columns["with flips: in the family %"] = [*flipped, spread(flipped_ensembles)]
    # Columns without values are left out; those of students alone have none of the ensemble.
    return {name: cells if len(cells) > count else [*cells, ""] for name, cells in columns.items() if cells}


def _paper_cells(paper: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the cells of each student and of the ensemble, alone and in the family."""
    ensemble = "-" if paper["ensemble"] is None else f"{paper['ensemble']:.2f}"
    alone = [f"{value:.2f}" for value in paper["baseline"]]
    return [*alone, ""], [*(f"{value:.2f}" for value in paper["family"]), ensemble]
