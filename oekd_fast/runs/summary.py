"""What a run found out: summary, table, picture."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table

from oekd_fast import __version__
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.family.flops import student_flops
from oekd_fast.figures.curves import draw_accuracies, draw_losses
from oekd_fast.figures.plotting import new_figure, png, shared_legend
from oekd_fast.figures.sizes import draw_sizes

if TYPE_CHECKING:
    from oekd_fast.runs.phase import PhaseResult


def summarise(
    config: TrainConfig,
    results: Mapping[str, PhaseResult],
    device: torch.device,
    seconds: float,
    image_size: int,
    combined: float | None = None,
) -> dict[str, Any]:
    """The content of summary.json; accuracies in percent on the test split, at the selected epoch.

    ``relative_gain`` is (accuracy - baseline) / baseline in percent, as the paper reports it. ``flops`` are those of
    `student_flops` for one image of `image_size`. ``best_test_...`` is the highest test accuracy of any epoch, of each
    student its own: how the paper chooses, and too good by that; null unless every epoch was looked at (`track_test`).

    Args:
        combined: what `combined_accuracy` returns.
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
        **_ensemble_accuracies(config, family, combined),
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
        "objective": config.objective,
    }


def _ensemble_accuracies(config: TrainConfig, family: PhaseResult, combined: float | None) -> dict[str, float | None]:
    if combined is None:
        return {
            "ensemble_accuracy": round(family.test.ensemble_accuracy, 4),
            "last_epoch_ensemble_accuracy": round(family.last_test.ensemble_accuracy, 4),
            "best_test_ensemble_accuracy": _best_test(family, lambda test: test["ensemble_accuracy"]),
        }
    return {
        "ensemble_accuracy": combined,
        # Snapshots are the same whichever epoch is selected; generations are those of their selected epochs.
        "last_epoch_ensemble_accuracy": combined if config.objective == "snapshot" else None,
        "best_test_ensemble_accuracy": None,
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
    figure = new_figure(15, 5.2, f"{config.model} x {config.num_students} on {config.dataset}, {config.epochs} epochs")
    sizes, losses, accuracies = figure.subplots(1, 3)
    histories = {name: result.history for name, result in results.items()}
    draw_sizes(sizes, [summary])
    draw_losses(losses, [histories])
    draw_accuracies(accuracies, [histories], [summary["selected_epoch"]])
    sizes.set_title("accuracy against size")
    sizes.legend(loc="lower right", fontsize="small")
    shared_legend(figure, accuracies, columns=7)
    path.write_bytes(png(figure))
