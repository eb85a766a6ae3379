"""Accuracy against the size of students: their parameters and floating-point operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from oekd_fast.common.spread import Spread, spread
from oekd_fast.figures.plotting import (
    ALONE,
    ENSEMBLE,
    FAMILY,
    logarithmic,
    new_figure,
    number_of_student,
    percent_axis,
    shared_legend,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Summary = Mapping[str, Any]
COSTS = {"parameters": "parameters", "flops": "FLOPs per image (2 per multiply-add)"}


def size_figure(summaries: Sequence[Summary], paper: Mapping[str, Any] | None = None) -> Figure:
    """Draw accuracy against parameters and against FLOPs.

    Args:
        summaries: contents of summary.json of runs that differ in the seed only.
        paper: results of the paper in percent, if any: ``family`` and ``baseline`` with one entry per student, and
            ``ensemble``, a number or None.
    """
    figure = new_figure(10.5, 4.8)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, cost in zip(panels, COSTS, strict=True):
        draw_sizes(axes, summaries, cost, paper)
    panels[1].set_ylabel("")
    shared_legend(figure, panels[0], columns=3)
    return figure


def draw_sizes(
    axes: Axes,
    summaries: Sequence[Summary],
    cost: Literal["parameters", "flops"] = "parameters",
    paper: Mapping[str, Any] | None = None,
) -> None:
    """Draw accuracies of the family, of each student alone, of the ensemble and of the paper against one cost.

    Error bars are standard deviations over runs.
    """
    x = [student[cost] for student in summaries[0]["students"]]
    runs = f", mean of {len(summaries)} runs" if len(summaries) > 1 else ""
    family = of_students(summaries, "accuracy")
    _draw(axes, x, family, "o-", FAMILY, f"trained as a family{runs}")
    if alone := of_students(summaries, "baseline_accuracy"):
        _draw(axes, x, alone, "s--", ALONE, f"each alone{runs}")
    for j, value in enumerate(family):
        # The label is on the side away from the line of students alone.
        above = not alone or alone[j].mean <= value.mean
        number_of_student(axes, j + 1, (x[j], value.mean), above=above)
    ensemble = spread([summary["ensemble_accuracy"] for summary in summaries])
    axes.axhline(ensemble.mean, color=ENSEMBLE, linestyle=":", label=f"ensemble{runs}")
    if ensemble.deviation:
        axes.axhspan(ensemble.mean - ensemble.deviation, ensemble.mean + ensemble.deviation, color=ENSEMBLE, alpha=0.08)
    if paper:
        style = {"markerfacecolor": "white", "linewidth": 0.8, "alpha": 0.7}
        axes.plot(x, paper["family"], "o-", color=FAMILY, label="paper: as a family", **style)
        axes.plot(x, paper["baseline"], "s--", color=ALONE, label="paper: each alone", **style)
        if paper["ensemble"] is not None:
            axes.axhline(paper["ensemble"], color=ENSEMBLE, linestyle=":", alpha=0.4, label="paper: ensemble")
    logarithmic(axes.xaxis)
    axes.set(xlabel=COSTS[cost], ylabel="test accuracy, %")
    percent_axis(axes)
    axes.grid(alpha=0.3)


def of_students(summaries: Sequence[Summary], name: str) -> list[Spread]:
    """Return the spread over runs of the entry `name` of each student; empty if a run has none."""
    rows = [[student.get(name) for student in summary["students"]] for summary in summaries]
    if any(value is None for row in rows for value in row):
        return []
    return [spread(values) for values in zip(*rows, strict=True)]


def _draw(axes: Axes, x: Sequence[float], values: Sequence[Spread], form: str, color: str, label: str) -> None:
    errors = [value.deviation or 0.0 for value in values]
    axes.errorbar(
        x,
        [value.mean for value in values],
        yerr=errors if any(errors) else None,
        fmt=form,
        color=color,
        capsize=3,
        label=label,
    )
