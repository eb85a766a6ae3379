"""Accuracy against the size of students: their parameters and floating-point operations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from oekd_fast.common.spread import Spread, binomial_error, spread
from oekd_fast.figures.hover import hover_points
from oekd_fast.figures.palette import ALONE, ENSEMBLE, IN_FAMILY, NEUTRAL, OF_ENSEMBLE, student_color, student_marker
from oekd_fast.figures.plotting import logarithmic, new_panels, number_of_student, percent_axis, shared_legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Summary = Mapping[str, Any]
Cost = Literal["parameters", "flops"]
# Points of the family are shifted to the right, those of students alone to the left, so that all error bars are seen.
_SHIFT = 0.015
COSTS = {"parameters": "parameters", "flops": "FLOPs per image (2 per multiply-add)"}


def size_figure(summaries: Sequence[Summary], paper: Mapping[str, Any] | None = None) -> Figure:
    """Draw accuracy against parameters and against FLOPs.

    Args:
        summaries: contents of summary.json of runs that differ in the seed only.
        paper: results of the paper in percent, if any: ``family`` and ``baseline`` with one entry per student, and
            ``ensemble``, a number or None.
    """
    figure, panels = new_panels(len(COSTS))
    for panel, cost in zip(panels, COSTS, strict=True):
        axes = panel.subplots()
        draw_sizes(axes, summaries, cost, paper)
        shared_legend(panel, axes, columns=3)
    return figure


def draw_sizes(
    axes: Axes, summaries: Sequence[Summary], cost: Cost = "parameters", paper: Mapping[str, Any] | None = None
) -> None:
    """Draw accuracies of the family, of each student alone, of the ensemble and of the paper against one cost.

    Error bars are those of `standard_error`.
    """
    x = [student[cost] for student in summaries[0]["students"]]
    family, alone = of_students(summaries, "accuracy"), of_students(summaries, "baseline_accuracy")
    if paper:
        for name, style, label in (("family", IN_FAMILY, "in the family"), ("baseline", ALONE, "alone")):
            axes.plot(x, paper[name], "x", color=NEUTRAL, linestyle=style, linewidth=0.8, label=f"paper: {label}")
            texts = [f"student {j}, paper, {label}: {value:.2f} %" for j, value in enumerate(paper[name], start=1)]
            hover_points(axes, x, paper[name], texts)
        if paper["ensemble"] is not None:
            axes.axhline(paper["ensemble"], color=NEUTRAL, linestyle=OF_ENSEMBLE, label="paper: ensemble")
    costs, tops = [_cost_text(size, cost) for size in x], [0.0] * len(x)
    for values, shift in ((alone, 1 - _SHIFT), (family, 1 + _SHIFT if alone else 1)):
        errors = [standard_error(value, summaries) for value in values]
        draw_students(axes, [shift * size for size in x], values, errors, costs, alone=values is alone)
        for j, (value, error) in enumerate(zip(values, errors, strict=True)):
            tops[j] = max(tops[j], value.mean + error)
    for number, point in enumerate(zip(x, tops, strict=True), start=1):
        number_of_student(axes, number, point)
    _draw_ensemble(axes, summaries, cost)
    logarithmic(axes.xaxis)
    axes.set(xlabel=COSTS[cost], ylabel="test accuracy, %", title=_error_name(summaries))
    percent_axis(axes)
    axes.grid()


def draw_students(
    axes: Axes,
    x: Sequence[float],
    values: Sequence[Spread],
    errors: Sequence[float],
    costs: Sequence[str] = (),
    *,
    alone: bool = False,
) -> None:
    """Draw accuracies with error bars, each student in its colour: filled and connected by a solid line in the family,
    hollow and connected by a dashed line alone.

    Args:
        axes: axes of the figure.
        x: place of each student.
        values: accuracy of each student in percent; may be empty.
        errors: half of the length of each error bar, in points; 0 for none.
        costs: cost of each student, which is shown under the pointer with its accuracy.
        alone: whether the students were trained alone.
    """
    if not values:
        return
    style, place = (ALONE, "alone") if alone else (IN_FAMILY, "in the family")
    means = [value.mean for value in values]
    axes.plot(x, means, color=NEUTRAL, linestyle=style, linewidth=1)
    for j, (size, mean, error) in enumerate(zip(x, means, errors, strict=True)):
        axes.errorbar(
            size, mean, yerr=error or None, fmt=student_marker(j), color=student_color(j), capsize=3, markersize=6,
            markerfacecolor="white" if alone else student_color(j),
        )  # fmt: skip
    axes.plot(
        [], [], "o", color=NEUTRAL, linestyle=style, markerfacecolor="white" if alone else NEUTRAL, label=place
    )  # fmt: skip
    texts = [
        f"student {j} {place}: {_with_error(mean, error)}"
        for j, (mean, error) in enumerate(zip(means, errors, strict=True), start=1)
    ]
    if costs:
        texts = [f"{text}\n{cost}" for text, cost in zip(texts, costs, strict=True)]
    hover_points(axes, x, means, texts)


def of_students(summaries: Sequence[Summary], name: str) -> list[Spread]:
    """Return the spread over runs of the entry `name` of each student; empty if a run has none."""
    rows = [[student.get(name) for student in summary["students"]] for summary in summaries]
    if any(value is None for row in rows for value in row):
        return []
    return [spread(values) for values in zip(*rows, strict=True)]


def standard_error(accuracy: Spread, summaries: Sequence[Summary]) -> float:
    """Return the standard error of an accuracy in points.

    It is the sample standard deviation over runs divided by the square root of their number. For a single run it is
    that of a share of its test images, sqrt(p (1 - p) / N), and 0 if their number is unknown.
    """
    if len(summaries) > 1:
        return (accuracy.deviation or 0.0) / math.sqrt(len(summaries))
    images = summaries[0].get("test_images")
    return binomial_error(accuracy.mean, images) if images else 0.0


def _draw_ensemble(axes: Axes, summaries: Sequence[Summary], cost: Cost) -> None:
    """Draw a line at the accuracy of the ensemble, and a star at its own cost if it is known."""
    accuracy = spread([summary["ensemble_accuracy"] for summary in summaries])
    error = standard_error(accuracy, summaries)
    axes.axhline(accuracy.mean, color=ENSEMBLE, linestyle=OF_ENSEMBLE, linewidth=1.2, label="ensemble")
    axes.axhspan(accuracy.mean - error, accuracy.mean + error, color=ENSEMBLE, alpha=0.06, linewidth=0)
    size = (summaries[0].get("ensemble") or {}).get(cost)
    text = f"ensemble: {_with_error(accuracy.mean, error)}"
    if size:
        axes.errorbar(size, accuracy.mean, yerr=error or None, fmt="*", color=ENSEMBLE, capsize=3, markersize=10)
        hover_points(axes, [size], [accuracy.mean], [f"{text}\n{_cost_text(size, cost)}"])


def _error_name(summaries: Sequence[Summary]) -> str:
    if len(summaries) > 1:
        return f"bars: ± standard error of {len(summaries)} runs"
    images = summaries[0].get("test_images")
    return f"bars: ± standard error of {images:,} test images" if images else ""


def _with_error(accuracy: float, error: float) -> str:
    return f"{accuracy:.2f} ± {error:.2f} %" if error else f"{accuracy:.2f} %"


def _cost_text(cost: float, name: str) -> str:
    return f"{cost:,} {'parameters' if name == 'parameters' else 'FLOPs'}"
