"""Training curves: losses and validation accuracies of each epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from oekd_fast.common.spread import spread
from oekd_fast.figures.plotting import (
    ENSEMBLE,
    logarithmic,
    new_figure,
    percent_axis,
    shared_legend,
    student_color,
    whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Lines of metrics.jsonl for each phase of a run.
Histories = Mapping[str, Sequence[Mapping[str, Any]]]


def curve_figure(runs: Sequence[Histories], selected_epochs: Sequence[int]) -> Figure:
    """Draw losses and accuracies.

    Args:
        runs: histories of runs that differ in the seed only. Lines are means and bands standard deviations over runs.
            They end with the run that stopped first.
        selected_epochs: selected epoch of each run.
    """
    figure = new_figure(11, 4.8)
    losses, accuracies = figure.subplots(1, 2)
    draw_losses(losses, runs)
    draw_accuracies(accuracies, runs, selected_epochs)
    shared_legend(figure, accuracies, columns=7)
    return figure


def draw_losses(axes: Axes, runs: Sequence[Histories]) -> None:
    """Draw the cross-entropy and the distillation loss of each student of the family."""
    count = len(runs[0]["ensemble"][0]["train"]["ce"])
    for j in range(count):
        color, label = student_color(j, count), f"student {j + 1}"
        _draw(axes, runs, "ensemble", lambda line, j=j: line["train"]["ce"][j], color=color, label=label)
        _draw(axes, runs, "ensemble", lambda line, j=j: line["train"]["kd"][j], color=color, linestyle=":")
    logarithmic(axes.yaxis)
    axes.set(xlabel="epoch", ylabel="loss, nats", title="training: cross-entropy (solid), distillation (dotted)")
    whole_numbers(axes)
    axes.grid(alpha=0.3)


def draw_accuracies(axes: Axes, runs: Sequence[Histories], selected_epochs: Sequence[int]) -> None:
    """Draw the accuracies of each student in the family and alone, and of the ensemble."""
    count = len(runs[0]["ensemble"][0]["validation"]["accuracy"])
    for j in range(count):
        color, label = student_color(j, count), f"student {j + 1}"
        _draw(axes, runs, "ensemble", lambda line, j=j: line["validation"]["accuracy"][j], color=color, label=label)
        alone = f"baseline_{j + 1}"
        if all(alone in run for run in runs):
            _draw(axes, runs, alone, lambda line: line["validation"]["accuracy"][0], color=color, linestyle="--")
    _draw(
        axes, runs, "ensemble", lambda line: line["validation"]["ensemble_accuracy"],
        color=ENSEMBLE, linestyle=":", label="ensemble",
    )  # fmt: skip
    for i, epoch in enumerate(sorted(set(selected_epochs))):
        axes.axvline(epoch, color="grey", linewidth=0.8, label=None if i else "selected epoch")
    axes.set(xlabel="epoch", ylabel="validation accuracy, %", title="validation: in the family (solid), alone (dashed)")
    percent_axis(axes)
    whole_numbers(axes)
    axes.grid(alpha=0.3)


def _draw(axes: Axes, runs: Sequence[Histories], phase: str, value: Callable[..., float], **style: Any) -> None:
    common = min(len(run[phase]) for run in runs)
    epochs = [line["epoch"] for line in runs[0][phase][:common]]
    of_runs = ([value(line) for line in run[phase][:common]] for run in runs)
    values = [spread(values) for values in zip(*of_runs, strict=True)]
    marker = "." if len(epochs) < 20 else None
    axes.plot(epochs, [v.mean for v in values], linewidth=1.3, marker=marker, markersize=4, **style)
    if len(runs) > 1:
        low, high = ([v.mean + sign * (v.deviation or 0.0) for v in values] for sign in (-1, 1))
        axes.fill_between(epochs, low, high, color=style["color"], alpha=0.12, linewidth=0)
