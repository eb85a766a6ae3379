"""The headline of a group of runs: key figures, gains and their significance, and which student fits which budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from oekd_fast.common.quantities import three_digits
from oekd_fast.common.spread import binomial_error, spread
from oekd_fast.figures.sizes import of_students, size_figure
from oekd_fast.latency.family import FamilyLatency
from oekd_fast.latency.result import milliseconds
from oekd_fast.reporting import page
from oekd_fast.reporting.budgets import Range, accuracy_ranges, cost_ranges
from oekd_fast.reporting.finished_runs import Run
from oekd_fast.reporting.gains import Gains
from oekd_fast.reporting.names import ENSEMBLE, colored_name
from oekd_fast.reporting.pictures import Pictures
from oekd_fast.reporting.predictions import student_names
from oekd_fast.reporting.significance import LEVEL

NEVER = "never"


def headline(
    runs: Sequence[Run], gains: Gains | None, paper: Mapping[str, Any] | None, picture: Pictures
) -> Iterator[str]:
    """Yield the headline as HTML.

    Args:
        runs: runs that differ in the seed only.
        gains: gains of the students; None if they were not trained alone.
        paper: results of the paper, if it has any for this family.
        picture: draws pictures.
    """
    summaries = [run.summary for run in runs]
    yield page.tiles(_key_figures(runs, gains))
    yield page.paragraph(_significance(gains, len(runs)), "lead")
    yield picture("sizes", lambda: size_figure(summaries, paper), "Test accuracy against parameters and against FLOPs")
    if gains is not None:
        yield page.paragraph(f"{gains.method} Significant means p < {LEVEL:g}.", "small")
    yield page.heading(3, "Which student for which budget")
    yield from _choice(runs)


def _key_figures(runs: Sequence[Run], gains: Gains | None) -> Iterator[tuple[str, str, str]]:
    summaries = [run.summary for run in runs]
    students, accuracies = summaries[0]["students"], of_students(summaries, "accuracy")
    ensemble = spread([summary["ensemble_accuracy"] for summary in summaries])
    seeds = f", mean of {len(runs)} seeds" if len(runs) > 1 else ""
    if len(students) > 1:
        yield "Ensemble", f"{ensemble.mean:.2f} %", f"all {len(students)} students together, test images{seeds}"
    largest, smallest = students[0], students[-1]
    yield "Student 1, the largest", f"{accuracies[0].mean:.2f} %", f"{largest['parameters']:,} parameters"
    if len(students) > 1:
        size = f"{smallest['parameters']:,} parameters, {smallest['relative_size']:.3g} % of student 1"
        yield f"Student {len(students)}, the smallest", f"{accuracies[-1].mean:.2f} %", size
    if gains is not None:
        mean = sum(difference.points for difference in gains.differences) / len(students)
        yield "Gain of the family", f"{mean:+.2f} points", f"over training alone, on average; {_count(gains)}"


def _count(gains: Gains) -> str:
    """Return how many students are significantly better or worse than alone."""
    found = [each for j, each in enumerate(gains.differences) if gains.is_significant(j)]
    better = sum(each.points > 0 for each in found)
    counts = [f"{count} {how}" for count, how in ((better, "better"), (len(found) - better, "worse")) if count]
    return f"significantly {', '.join(counts)}" if counts else "none is significant"


def _significance(gains: Gains | None, runs: int) -> str:
    if gains is None:
        return "The gain of the family is unknown, as not every run has students trained alone (--baseline)."
    sentence = gains.sentence()
    return sentence if runs > 1 else f"In this run, {sentence[0].lower()}{sentence[1:]}"


def _choice(runs: Sequence[Run]) -> Iterator[str]:
    """Yield the table of the budgets for which each student, or the ensemble, is the one to use."""
    summaries, first = [run.summary for run in runs], runs[0].summary
    networks = [*first["students"]]
    names = list(student_names(len(networks)))
    validation = [_validation(runs, lambda line, j=j: line["accuracy"][j]) for j in range(len(networks))]
    test = of_students(summaries, "accuracy")
    if first.get("ensemble") is not None:  # older versions did not write its size
        networks.append(first["ensemble"])
        names.append(ENSEMBLE)
        validation.append(_validation(runs, lambda line: line["ensemble_accuracy"]))
        test.append(spread([summary["ensemble_accuracy"] for summary in summaries]))
    parameters = [network["parameters"] for network in networks]
    columns = {
        "parameters": [_text(r, "{:,.0f}".format) for r in cost_ranges(parameters, validation, parameters)],
        "MFLOPs": [
            _text(r, three_digits)
            for r in cost_ranges([network["flops"] / 1e6 for network in networks], validation, parameters)
        ],
    }
    latency = FamilyLatency.of(first)
    if latency is not None:
        setting = latency.preferred
        medians = [each.median_ms for each in latency.at(setting)]
        if len(networks) > len(medians):
            medians.append(latency.ensemble[setting].median_ms if setting in latency.ensemble else None)
        ranges = cost_ranges(medians, validation, parameters)
        columns["ms"] = [_text(r, milliseconds) for r in ranges]
    columns["least accuracy %"] = [
        NEVER if r is None else f"up to {r.high:.2f}" for r in accuracy_ranges(validation, parameters)
    ]
    rows = zip(map(colored_name, names), *columns.values(), [f"{value:.2f}" for value in validation], test, strict=True)
    yield page.table(["network", *columns, "validation %", "test %"], rows)
    called = "" if latency is None else f" Milliseconds are the median of a call ({latency.preferred})."
    images = first["test_images"]
    error = max(binomial_error(value.mean, images) for value in test)
    several = "the mean over seeds of " if len(runs) > 1 else ""
    yield page.paragraph(
        "A row is the network to use within the limits of a column. For a limit of parameters, FLOPs or milliseconds, "
        f"that is the network with the highest validation accuracy ({several}the epoch that was selected); for a least "
        "accuracy, the one with the fewest parameters. Ranges exclude their upper end; MFLOPs and milliseconds are "
        f"rounded. {NEVER.capitalize()}: another network is at least as good.{called} python -m oekd_fast.pick chooses "
        f"in the same way. With {images:,} test images, an accuracy has a standard error of up to {error:.2f} points, "
        "so that smaller differences may be chance.",
        "small",
    )


def _validation(runs: Sequence[Run], value: Callable[[Mapping[str, Any]], float]) -> float:
    """Return the mean over runs of a validation accuracy at the selected epoch."""
    lines = [run.histories["ensemble"][run.summary["selected_epoch"] - 1]["validation"] for run in runs]
    return sum(map(value, lines)) / len(lines)


def _text(limits: Range | None, show: Callable[[float], str]) -> str:
    if limits is None:
        return NEVER
    if math.isinf(limits.high):
        return f"from {show(limits.low)}"
    return f"{show(limits.low)} to {show(limits.high)}"
