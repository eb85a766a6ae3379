"""Results of a run: summary.json, the final table and report.png."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from oekd_fast import __version__
from oekd_fast.common.tables import table_of_columns
from oekd_fast.common.text import print_line, shortened
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.family.ensemble import StudentEnsemble
from oekd_fast.family.flops import FamilyFlops, family_flops
from oekd_fast.figures.curves import draw_accuracies, draw_losses
from oekd_fast.figures.latency import draw_latency
from oekd_fast.figures.plotting import new_figure, shared_legend
from oekd_fast.figures.sizes import draw_sizes
from oekd_fast.latency.family import FamilyLatency
from oekd_fast.latency.networks import size_of
from oekd_fast.latency.result import MARK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from oekd_fast.runs.tasks import PhaseResult


def summarise(
    config: TrainConfig,
    results: Mapping[str, PhaseResult],
    device: torch.device,
    seconds: float,
    image_size: int,
    combined: float | None = None,
    combined_with_flips: float | None = None,
) -> dict[str, Any]:
    """Return the content of summary.json; accuracies are in percent, on the test split, at the selected epoch.

    ``relative_gain`` is (accuracy - baseline) / baseline in percent, as in the paper. ``flops`` are those of
    `student_flops` for one image. ``best_test_...`` is the highest test accuracy over all evaluated epochs, chosen
    separately for each student as the paper does; it overestimates the accuracy, and is null unless `track_test` is
    set. ``..._with_flips`` are accuracies by the mean logits of each image and its mirror image, and null unless
    `test_flips` is set. ``trained_epochs`` is below ``epochs`` if the phase stopped early. ``file_bytes`` and
    ``latency`` are null until `with_file_sizes` and `with_latency` add them. ``ensemble`` describes all students on
    their shared base, and is null for objectives that train one network.

    Args:
        results: results of all phases by name.
        seconds: duration of the run.
        image_size: side length of the images, in pixels.
        combined: test accuracy of the mean prediction of several networks, from `combined_accuracy`; None for a family.
        combined_with_flips: the same with flips.
    """
    family = results["ensemble"]
    counts = family.ensemble.parameter_counts()
    flops = family_flops(family.ensemble, image_size)
    students = []
    for j, parameters in enumerate(counts):
        alone = results.get(f"baseline_{j + 1}")
        accuracy = round(family.test.accuracy[j], 4)
        baseline = round(alone.test.accuracy[0], 4) if alone else None
        students.append(
            {
                "index": j + 1,
                "parameters": parameters,
                "relative_size": round(100.0 * parameters / counts[0], 4),
                "flops": flops.base + flops.branches[j],
                "file_bytes": None,
                "latency": None,
                "accuracy": accuracy,
                "baseline_accuracy": baseline,
                "accuracy_with_flips": _with_flips(family, j),
                "baseline_accuracy_with_flips": _with_flips(alone, 0) if alone else None,
                "relative_gain": round(100.0 * (accuracy - baseline) / baseline, 4) if baseline else None,
                "last_epoch_accuracy": round(family.last_test.accuracy[j], 4),
                "last_epoch_baseline_accuracy": round(alone.last_test.accuracy[0], 4) if alone else None,
                "best_test_accuracy": _best_test(family, lambda test, j=j: test["accuracy"][j]),
                "best_test_baseline_accuracy": _best_test(alone, lambda test: test["accuracy"][0]) if alone else None,
            }
        )
    return {
        "dataset": config.dataset,
        "model": config.model,
        "epochs": config.epochs,
        "trained_epochs": len(family.history),
        "selected_epoch": family.selected_epoch,
        "students": students,
        "ensemble": None if config.family_objective.alone else _ensemble_size(family.ensemble, flops),
        **_ensemble_accuracies(config, family, combined),
        "ensemble_accuracy_with_flips": _ensemble_with_flips(family, combined_with_flips),
        "test_images": family.test.images,
        "images_per_second": round(family.images_per_second, 1),
        "seconds": round(seconds, 1),
        "phases": {
            name: {
                "seconds": round(result.seconds, 1),
                "images_per_second": round(result.images_per_second, 1),
                "selected_epoch": result.selected_epoch,
                "trained_epochs": len(result.history),
                "stopped_early": result.stopped_early,
            }
            for name, result in results.items()
        },
        "device": _device_name(device),
        "versions": {
            "oekd_fast": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "objective": config.objective,
        "latency": None,
    }


def _ensemble_size(ensemble: StudentEnsemble, flops: FamilyFlops) -> dict[str, Any]:
    """Return the size of all students with one base, without the adapters, as it would be in one file."""
    parts = [ensemble.base, ensemble.branches, *([] if ensemble.gate is None else [ensemble.gate])]
    return {**size_of(nn.ModuleList(parts)), "flops": flops.base + sum(flops.branches), "latency": None}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)


def _ensemble_accuracies(config: TrainConfig, family: PhaseResult, combined: float | None) -> dict[str, float | None]:
    if combined is None:
        return {
            "ensemble_accuracy": round(family.test.ensemble_accuracy, 4),
            "last_epoch_ensemble_accuracy": round(family.last_test.ensemble_accuracy, 4),
            "best_test_ensemble_accuracy": _best_test(family, lambda test: test["ensemble_accuracy"]),
        }
    return {
        "ensemble_accuracy": combined,
        # Snapshots do not depend on the selected epoch; generations are combined at their selected epochs only.
        "last_epoch_ensemble_accuracy": combined if config.objective == "snapshot" else None,
        "best_test_ensemble_accuracy": None,
    }


def _with_flips(result: PhaseResult, student: int) -> float | None:
    return None if result.flipped_test is None else round(result.flipped_test.accuracy[student], 4)


def _ensemble_with_flips(family: PhaseResult, combined: float | None) -> float | None:
    if combined is not None or family.flipped_test is None:
        return combined
    return round(family.flipped_test.ensemble_accuracy, 4)


def _best_test(result: PhaseResult, accuracy: Callable[[dict[str, Any]], float]) -> float | None:
    evaluated = [line for line in result.history if "validation" in line]
    if not all("test" in line for line in evaluated):
        return None
    return round(max(accuracy(line["test"]) for line in evaluated), 4)


UNKNOWN = "-"  # the cell of a number that a run does not have

# Columns of the table that are left out first where the output is narrow, in this order.
_OPTIONAL_COLUMNS = ("MFLOPs", "size %", "baseline %", "gain %", "ms", "parameters", "with flips %")


def print_summary(console: Console, summary: Mapping[str, Any]) -> None:
    """Print the results at the end of a run: a title, the table of students, and the ensemble.

    No number and no heading is cut. The table has the columns that fit into the width of the console; on a console
    that is narrower than its last two columns, each student has a line, which the terminal wraps.
    """
    print_line(console, title_of(summary))
    table = summary_table(summary, console.width)
    if table is None:
        for student in summary["students"]:
            print_line(console, f"student {student['index']}: {student['accuracy']:.2f} %")
    else:
        console.print(table)
    for line in notes_of(summary):
        print_line(console, line)


def title_of(summary: Mapping[str, Any]) -> str:
    """Return the title of the table of students."""
    return f"{summary['model']} x {len(summary['students'])} on {summary['dataset']}, test accuracy"


def notes_of(summary: Mapping[str, Any]) -> list[str]:
    """Return the lines below the table of students: the ensemble, and what the latencies are."""
    with_flips = summary.get("ensemble_accuracy_with_flips")
    ensemble = (
        f"ensemble {summary['ensemble_accuracy']:.2f} %, "
        f"{'' if with_flips is None else f'{with_flips:.2f} % with flips, '}{summary['test_images']:,} test images, "
        f"epoch {summary['selected_epoch']} of {summary['trained_epochs']} selected on validation images"
    )
    latency = FamilyLatency.of(summary)
    return [ensemble, *(() if latency is None else _latency_lines(latency))]


def _latency_lines(latency: FamilyLatency) -> Iterator[str]:
    setting = latency.preferred
    ensemble = f"; ensemble {latency.ensemble[setting].text} ms" if setting in latency.ensemble else ""
    yield f"ms: median latency of one image ({setting.place}){ensemble}"
    for remark in latency.remarks(setting):
        yield f"{MARK} {remark}"


def summary_table(summary: Mapping[str, Any], width: int = 80) -> Table | None:
    """Return the table of the students, with the columns that fit into `width` characters; None if two do not fit."""
    return table_of_columns(student_columns(summary), _OPTIONAL_COLUMNS, width)


def student_columns(summary: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the cells of the table of students by heading; each column has a cell for each student."""
    columns: dict[str, list[str]] = {}
    latency = FamilyLatency.of(summary)
    cells = [""] * len(summary["students"]) if latency is None else latency.cells(latency.preferred)
    for student, milliseconds in zip(summary["students"], cells, strict=True):
        for heading, cell in (
            ("student", str(student["index"])),
            ("parameters", f"{student['parameters']:,}"),
            ("size %", f"{student['relative_size']:.2f}"),
            ("MFLOPs", f"{student['flops'] / 1e6:,.1f}"),
            ("ms", milliseconds),
            ("baseline %", _number(student["baseline_accuracy"], ".2f")),
            ("accuracy %", f"{student['accuracy']:.2f}"),
            ("with flips %", _number(student.get("accuracy_with_flips"), ".2f")),
            ("gain %", _number(student["relative_gain"], "+.2f")),
        ):
            columns.setdefault(heading, []).append(cell)
    if summary.get("ensemble_accuracy_with_flips") is None:
        del columns["with flips %"]
    if latency is None:
        del columns["ms"]
    return columns


def _number(value: float | None, form: str) -> str:
    return UNKNOWN if value is None else format(value, form)


def draw_report(config: TrainConfig, summary: Mapping[str, Any], results: Mapping[str, PhaseResult]) -> Figure:
    """Draw report.png: accuracy against parameters and, if it was measured, latency; training loss and validation
    accuracy."""
    dataset, epochs = shortened(config.dataset, 80), f"{config.epochs} epoch{'s' if config.epochs > 1 else ''}"
    latency = FamilyLatency.of(summary)
    panels = 3 if latency is None else 4
    figure = new_figure(
        5 * panels, 5.2, f"{shortened(config.model, 40)} x {config.num_students} on {dataset}, {epochs}"
    )
    sizes, *of_latency, losses, accuracies = figure.subplots(1, panels)
    histories = {name: result.history for name, result in results.items()}
    draw_sizes(sizes, [summary])
    draw_losses(losses, [histories])
    draw_accuracies(accuracies, [histories], [summary["selected_epoch"]])
    for axes in of_latency:
        batch, settings = next(iter(latency.batches.items()))
        of_students = [student["accuracy"] for student in summary["students"]]
        draw_latency(axes, of_students, summary["ensemble_accuracy"], latency.curves(settings))
        axes.set_title(f"accuracy against latency, batch {batch}")
        axes.legend(loc="best", fontsize="small")
    sizes.legend(loc="lower right", fontsize="small")
    shared_legend(figure, accuracies, columns=7)
    return figure
