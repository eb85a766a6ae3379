"""Accuracy against latency of students and their ensemble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oekd_fast.figures.hover import hover_points
from oekd_fast.figures.palette import ENSEMBLE, NEUTRAL, TEXT, student_color
from oekd_fast.figures.plotting import logarithmic, new_panels, number_of_student, percent_axis, shared_legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Curves differ by their lines and markers, since colours are those of students.
_LINES = ("solid", "dashed", "dotted", "dashdot")
_MARKERS = ("o", "s", "^", "D", "v", "P")


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
    figure, parts = new_panels(len(panels))
    for part, (title, curves) in zip(parts, panels.items(), strict=True):
        axes = part.subplots()
        draw_latency(axes, accuracies, ensemble, curves)
        axes.set_title(title)
        shared_legend(part, axes, columns=2)
    return figure


def draw_latency(axes: Axes, accuracies: Sequence[float], ensemble: float, curves: Sequence[LatencyCurve]) -> None:
    """Draw accuracies against the medians of `curves`; lines to the right end at the 95th percentile.

    Students are numbered along the first curve. Those that are not faster than a larger one are circled.
    """
    for number, curve in enumerate(curves):
        line, marker = _LINES[number % len(_LINES)], _MARKERS[number % len(_MARKERS)]
        axes.plot(curve.medians, accuracies, color=NEUTRAL, linestyle=line, linewidth=1)
        axes.plot([], [], color=NEUTRAL, linestyle=line, marker=marker, label=curve.label)
        for j, (median, p95, accuracy) in enumerate(zip(curve.medians, curve.p95s, accuracies, strict=True)):
            axes.errorbar(
                median, accuracy, xerr=([0.0], [max(0.0, p95 - median)]), fmt=marker, color=student_color(j),
                ecolor=(student_color(j), 0.4), markersize=6,
            )  # fmt: skip
        hover_points(axes, curve.medians, accuracies, _texts(accuracies, curve))
        if curve.ensemble is not None:
            axes.plot([curve.ensemble], [ensemble], "*", color=ENSEMBLE, markersize=10)
            text = f"ensemble: {ensemble:.2f} %\n{curve.label}: median {curve.ensemble:.3g} ms"
            hover_points(axes, [curve.ensemble], [ensemble], [text])
    for number, point in enumerate(zip(curves[0].medians, accuracies, strict=True), start=1):
        number_of_student(axes, number, point)
    if any(curve.ensemble is not None for curve in curves):
        axes.plot([], [], "*", color=ENSEMBLE, markersize=10, label="ensemble")
    marked = [
        point
        for curve in curves
        for *point, not_faster in zip(curve.medians, accuracies, curve.not_faster, strict=True)
        if not_faster
    ]
    if marked:
        axes.plot(
            *zip(*marked, strict=True), "o", markersize=12, markerfacecolor="none", markeredgecolor=TEXT,
            label="not measurably faster than a larger one",
        )  # fmt: skip
    logarithmic(axes.xaxis)
    axes.set(xlabel="latency, ms (median; line to the 95th percentile)", ylabel="test accuracy, %")
    percent_axis(axes)
    axes.grid()


def _texts(accuracies: Sequence[float], curve: LatencyCurve) -> list[str]:
    return [
        f"student {j}: {accuracy:.2f} %\n{curve.label}: median {median:.3g} ms, 95th percentile {p95:.3g} ms"
        + ("\nnot measurably faster than a larger student" if not_faster else "")
        for j, (accuracy, median, p95, not_faster) in enumerate(
            zip(accuracies, curve.medians, curve.p95s, curve.not_faster, strict=True), start=1
        )
    ]
