"""What a run found out: summary, table, picture."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table

from oekd_fast import __version__
from oekd_fast.config import TrainConfig
from oekd_fast.flops import student_flops

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from oekd_fast.phase import PhaseResult


def summarise(
    config: TrainConfig, results: Mapping[str, PhaseResult], device: torch.device, seconds: float, image_size: int
) -> dict[str, Any]:
    """The content of summary.json; accuracies in percent on the test split, at the selected epoch.

    ``relative_gain`` is (accuracy - baseline) / baseline in percent, as the paper reports it. ``flops`` are those of
    `student_flops` for one image of `image_size`. ``best_test_...`` is the highest test accuracy of any epoch, of each
    student its own: how the paper chooses, and too good by that; null unless every epoch was looked at (`track_test`).
    """
    family = results["ensemble"]
    counts = family.ensemble.parameter_counts()
    flops = student_flops(family.ensemble, image_size)
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
                "flops": flops[j],
                "accuracy": accuracy,
                "baseline_accuracy": baseline,
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
        "selected_epoch": family.selected_epoch,
        "students": students,
        "ensemble_accuracy": round(family.test.ensemble_accuracy, 4),
        "last_epoch_ensemble_accuracy": round(family.last_test.ensemble_accuracy, 4),
        "best_test_ensemble_accuracy": _best_test(family, lambda test: test["ensemble_accuracy"]),
        "test_images": family.test.images,
        "images_per_second": round(family.images_per_second, 1),
        "seconds": round(seconds, 1),
        "phases": {
            name: {
                "seconds": round(result.seconds, 1),
                "images_per_second": round(result.images_per_second, 1),
                "selected_epoch": result.selected_epoch,
            }
            for name, result in results.items()
        },
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
        "versions": {
            "oekd_fast": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def _best_test(result: PhaseResult, accuracy: Callable[[dict[str, Any]], float]) -> float | None:
    if not all("test" in line for line in result.history):
        return None
    return round(max(accuracy(line["test"]) for line in result.history), 4)


def summary_table(summary: Mapping[str, Any]) -> Table:
    """The table at the end of a run."""
    table = Table(
        title=f"{summary['model']} x {len(summary['students'])} on {summary['dataset']}, test accuracy",
        caption=f"ensemble {summary['ensemble_accuracy']:.2f} %  ·  epoch {summary['selected_epoch']} of "
        f"{summary['epochs']}, chosen on held-out validation images  ·  {summary['test_images']} test images",
    )
    for heading in ("student", "parameters", "size %", "MFLOPs", "baseline %", "ensemble-trained %", "gain %"):
        table.add_column(heading, justify="right")
    for student in summary["students"]:
        table.add_row(
            str(student["index"]),
            f"{student['parameters']:,}",
            f"{student['relative_size']:.2f}",
            f"{student['flops'] / 1e6:,.1f}",
            _number(student["baseline_accuracy"], ".2f"),
            f"{student['accuracy']:.2f}",
            _number(student["relative_gain"], "+.2f"),
        )
    return table


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def draw_report(
    path: Path, config: TrainConfig, summary: Mapping[str, Any], results: Mapping[str, PhaseResult]
) -> None:
    """Three panels: accuracy against parameters, training loss, validation accuracy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.6), layout="constrained")
    figure.suptitle(f"{config.model} x {config.num_students} on {config.dataset}, {config.epochs} epochs")
    sizes, losses, accuracies = figure.subplots(1, 3)
    _draw_sizes(sizes, summary)
    _draw_losses(losses, results)
    _draw_accuracies(accuracies, summary, results)
    figure.savefig(path, dpi=110)


def _draw_sizes(axes: Axes, summary: Mapping[str, Any]) -> None:
    students = summary["students"]
    parameters = [student["parameters"] for student in students]
    axes.plot(parameters, [student["accuracy"] for student in students], "o-", label="trained as a family")
    if students[0]["baseline_accuracy"] is not None:
        alone = [student["baseline_accuracy"] for student in students]
        axes.plot(parameters, alone, "s--", label="each alone")
    axes.axhline(summary["ensemble_accuracy"], color="grey", linestyle=":", label="ensemble")
    axes.set(xscale="log", xlabel="parameters", ylabel="test accuracy, %", title="accuracy against size")
    axes.legend()
    axes.grid(alpha=0.3)


def _draw_losses(axes: Axes, results: Mapping[str, PhaseResult]) -> None:
    history = results["ensemble"].history
    epochs = [line["epoch"] for line in history]
    for j in range(len(history[0]["train"]["ce"])):
        ce = axes.plot(epochs, [line["train"]["ce"][j] for line in history], label=f"student {j + 1}")
        kd = [line["train"]["kd"][j] for line in history]
        axes.plot(epochs, kd, linestyle=":", color=ce[0].get_color())
    axes.set(
        yscale="log",
        xlabel="epoch",
        ylabel="loss",
        title="training: cross-entropy (solid), distillation (dotted)",
    )
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)


def _draw_accuracies(axes: Axes, summary: Mapping[str, Any], results: Mapping[str, PhaseResult]) -> None:
    history = results["ensemble"].history
    epochs = [line["epoch"] for line in history]
    for j in range(len(summary["students"])):
        values = [line["validation"]["accuracy"][j] for line in history]
        color = axes.plot(epochs, values, label=f"student {j + 1}")[0].get_color()
        if alone := results.get(f"baseline_{j + 1}"):
            values = [line["validation"]["accuracy"][0] for line in alone.history]
            axes.plot([line["epoch"] for line in alone.history], values, "--", color=color, alpha=0.5)
    axes.plot(epochs, [line["validation"]["ensemble_accuracy"] for line in history], "k:", label="ensemble")
    axes.axvline(summary["selected_epoch"], color="grey", linewidth=0.8, label="selected epoch")
    axes.set(xlabel="epoch", ylabel="validation accuracy, %", title="validation: family (solid), alone (dashed)")
    axes.legend(fontsize="small", loc="lower right")
    axes.grid(alpha=0.3)
