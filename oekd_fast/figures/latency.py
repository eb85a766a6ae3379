"""Accuracy against latency of students and their ensemble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oekd_fast.figures.plotting import logarithmic, new_figure, number_of_student, percent_axis, shared_legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = ("tab:blue", "tab:cyan", "tab:orange", "tab:olive", "tab:purple", "tab:brown")
_NOT_FASTER = "tab:red"


@dataclass(frozen=True)
class LatencyCurve:
    """Latency of all networks on one runtime, with a number of threads and a size of the batch.

    Args:
        label: runtime and threads.
        medians, p95s: of each student, in milliseconds.
        not_faster: whether each student is not faster than a larger one.
        ensemble: median of the ensemble in milliseconds; None if it was not measured.
    """

    label: str
    medians: Sequence[float]
    p95s: Sequence[float]
    not_faster: Sequence[bool]
    ensemble: float | None = None


def latency_figure(
    accuracies: Sequence[float], ensemble: float, panels: Mapping[str, Sequence[LatencyCurve]]
) -> Figure:
    """Draw accuracy against latency, with a panel for each size of the batch.

    Args:
        accuracies: accuracy of each student in percent.
        ensemble: accuracy of the ensemble in percent.
        panels: curves by the title of their panel.
    """
    figure = new_figure(5.25 * max(len(panels), 2), 4.8)
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, curves) in zip(all_axes, panels.items(), strict=True):
        draw_latency(axes, accuracies, ensemble, curves)
        axes.set_title(title)
    for axes in all_axes[1:]:
        axes.set_ylabel("")
    shared_legend(figure, all_axes[0], columns=3)
    return figure


def draw_latency(axes: Axes, accuracies: Sequence[float], ensemble: float, curves: Sequence[LatencyCurve]) -> None:
    """Draw accuracies against the medians of `curves`; lines to the right end at the 95th percentile.

    Students are numbered along the first curve. Those that are not faster than a larger one are circled.
    """
    for number, curve in enumerate(curves):
        color = _COLORS[number % len(_COLORS)]
        tails = [max(0.0, high - low) for low, high in zip(curve.medians, curve.p95s, strict=True)]
        axes.errorbar(
            curve.medians, accuracies, xerr=([0.0] * len(tails), tails), fmt="o-", color=color, ecolor=(color, 0.35),
            label=curve.label,
        )  # fmt: skip
        if curve.ensemble is not None:
            axes.plot([curve.ensemble], [ensemble], "*", color=color, markersize=11)
    for number, point in enumerate(zip(curves[0].medians, accuracies, strict=True), start=1):
        number_of_student(axes, number, point)
    if any(curve.ensemble is not None for curve in curves):
        axes.plot([], [], "*", color="black", markersize=11, label="ensemble")
    marked = [
        point
        for curve in curves
        for *point, not_faster in zip(curve.medians, accuracies, curve.not_faster, strict=True)
        if not_faster
    ]
    if marked:
        axes.plot(
            *zip(*marked, strict=True), "o", markersize=13, markerfacecolor="none", markeredgecolor=_NOT_FASTER,
            label="not measurably faster than a larger student",
        )  # fmt: skip
    logarithmic(axes.xaxis)
    axes.set(xlabel="latency, ms (median; line to the 95th percentile)", ylabel="test accuracy, %")
    percent_axis(axes)
    axes.grid(alpha=0.3)
