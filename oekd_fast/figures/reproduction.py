"""Figure of the results of a reproduction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from oekd_fast.common.spread import Spread
from oekd_fast.figures.palette import ENSEMBLE, NEUTRAL, OF_ENSEMBLE, TEXT, student_color
from oekd_fast.figures.plotting import new_figure
from oekd_fast.figures.sizes import draw_students

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEASURE_LABELS = {"selected": "selected epoch", "last_epoch": "last epoch", "best_test": "best test epoch"}


def draw(results: Mapping[str, Any]) -> Figure:
    """Draw accuracy and gain of each student; error bars are standard deviations over seeds."""
    seeds = len(results["seeds"])
    figure = new_figure(
        13,
        5,
        f"{results['recipe']}: {len(results['students'])} students, {results['epochs']} "
        f"epoch{'s' if results['epochs'] > 1 else ''}, {seeds} seed{'s' if seeds > 1 else ''}",
    )
    accuracies, gains = figure.subplots(1, 2)
    _draw_accuracies(accuracies, results)
    _draw_gains(gains, results)
    return figure


def _draw_accuracies(axes: Axes, results: Mapping[str, Any]) -> None:
    accuracy, paper = results["accuracy"]["selected"], results["paper"]
    for name, place in (("baseline", 0.08), ("family", -0.08)):
        values = [Spread(value["mean"], value["deviation"]) for value in accuracy.get(name, ())]
        places = [j + place for j in range(1, len(values) + 1)]
        draw_students(axes, places, values, [value.deviation or 0.0 for value in values], alone=name == "baseline")
    if accuracy["ensemble"] is not None:
        axes.axhline(accuracy["ensemble"]["mean"], color=ENSEMBLE, linestyle=OF_ENSEMBLE, label="ensemble")
    if paper:
        for name, label, place, form in (("family", "in the family", -0.24, "x"), ("baseline", "alone", 0.24, "+")):
            places = [j + place for j in range(1, len(paper[name]) + 1)]
            axes.plot(places, paper[name], form, color=TEXT, markersize=8, label=f"paper: {label}")
        if paper["ensemble"] is not None:
            axes.axhline(paper["ensemble"], color=NEUTRAL, linestyle=OF_ENSEMBLE, label="paper: ensemble")
    _finish(axes, results, "test accuracy, %", "test accuracy at the selected epoch")


def _draw_gains(axes: Axes, results: Mapping[str, Any]) -> None:
    for place, (measure, label) in enumerate(MEASURE_LABELS.items()):
        accuracy = results["accuracy"][measure]
        if accuracy is not None and "gain_points" in accuracy:
            _points(axes, accuracy["gain_points"], 0.15 * (place - 1), "osD"[place], label)
    if results["paper"]:
        gains = results["paper"]["gain_points"]
        axes.plot([j + 0.3 for j in range(1, len(gains) + 1)], gains, "x", color=TEXT, markersize=8, label="paper")
    axes.axhline(0.0, color=TEXT, linewidth=0.8)
    _finish(axes, results, "gain, points", "gain of the family over training alone")


def _points(axes: Axes, values: list[dict[str, float | None]], shift: float, form: str, label: str) -> None:
    for j, value in enumerate(values):
        axes.errorbar(
            j + 1 + shift, value["mean"], value["deviation"] or 0.0, fmt=form, color=student_color(j), capsize=3
        )
    axes.plot([], [], form, color=NEUTRAL, label=label)


def _finish(axes: Axes, results: Mapping[str, Any], ylabel: str, title: str) -> None:
    students = results["students"]
    axes.set_xticks(
        [student["index"] for student in students],
        [f"{student['index']}\n{student['relative_size']:.3g} %" for student in students],
    )
    axes.set(xlabel="student and its relative size", ylabel=ylabel, title=title)
    axes.margins(0.08)
    axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)  # below the axes
    axes.grid()
