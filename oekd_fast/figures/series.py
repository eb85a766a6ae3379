"""Lines of values by epoch: reading them from histories, drawing them, and showing their values under the pointer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

from oekd_fast.common.spread import Spread, spread
from oekd_fast.figures.hover import hover_bands

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Lines of metrics.jsonl for each phase of a run.
Histories = Mapping[str, Sequence[Mapping[str, Any]]]
MOST_BANDS = 60  # epochs whose values are shown under the pointer; more are left out evenly
_MARKED = 20  # lines of fewer epochs have a marker at each


@dataclass(frozen=True)
class Series:
    """Values of one quantity by epoch.

    Args:
        label: name of the quantity.
        epochs: epochs, counted from 1, ascending.
        values: mean and deviation over runs, one for each epoch.
        color, linestyle: how the line is drawn.
        in_legend: whether the legend names the line.
    """

    label: str
    epochs: Sequence[int]
    values: Sequence[Spread]
    color: str
    linestyle: str = "solid"
    in_legend: bool = True

    @property
    def means(self) -> list[float]:
        return [value.mean for value in self.values]


def series_of(
    runs: Sequence[Histories],
    phase: str,
    value: Callable[[Mapping[str, Any]], Any],
    label: str,
    color: str,
    linestyle: str = "solid",
    in_legend: bool = True,
) -> list[Series]:
    """Return the line of `value` of each epoch of a phase, or nothing if a run lacks it.

    Args:
        runs: histories of runs that differ in the seed only; the line ends with the run that stopped first.
        phase: name of the phase.
        value: function of a line of metrics.jsonl. It may raise KeyError, IndexError or TypeError if there is no value.
        label, color, linestyle, in_legend: those of the line.
    """
    if any(not run.get(phase) for run in runs):
        return []
    common = min(len(run[phase]) for run in runs)
    try:
        of_epochs = [[value(run[phase][epoch]) for run in runs] for epoch in range(common)]
    except (KeyError, IndexError, TypeError):
        return []
    if not all(_is_finite(number) for numbers in of_epochs for number in numbers):
        return []
    epochs = [line["epoch"] for line in runs[0][phase][:common]]
    return [Series(label, epochs, [spread(numbers) for numbers in of_epochs], color, linestyle, in_legend)]


def draw_series(axes: Axes, series: Sequence[Series], form: Callable[[float], str]) -> None:
    """Draw lines, with bands of one standard deviation over runs, and show the values of each epoch under the pointer.

    Args:
        axes: axes of the figure.
        series: the lines.
        form: function that formats a value.
    """
    for line in series:
        axes.plot(
            line.epochs, line.means, color=line.color, linestyle=line.linestyle, linewidth=1.3,
            marker="." if len(line.epochs) < _MARKED else None, markersize=4,
            label=line.label if line.in_legend else None,
        )  # fmt: skip
        if any(value.deviation for value in line.values):
            low, high = ([v.mean + sign * (v.deviation or 0.0) for v in line.values] for sign in (-1, 1))
            axes.fill_between(line.epochs, low, high, color=line.color, alpha=0.12, linewidth=0)
    _hover_epochs(axes, series, form)


def _hover_epochs(axes: Axes, series: Sequence[Series], form: Callable[[float], str]) -> None:
    epochs = sorted({epoch for line in series for epoch in line.epochs})
    if not epochs:
        return
    stride = math.ceil(len(epochs) / MOST_BANDS)
    shown = epochs[::-1][::stride][::-1]  # the last epoch is shown
    values = [dict(zip(line.epochs, line.values, strict=True)) for line in series]
    texts = [
        "\n".join(
            [f"epoch {epoch}"]
            + [
                f"{line.label}: {form(of_line[epoch].mean)}" + _deviation(of_line[epoch], form)
                for line, of_line in zip(series, values, strict=True)
                if epoch in of_line
            ]
        )
        for epoch in shown
    ]
    middles = [(low + high) / 2 for low, high in zip(shown[:-1], shown[1:], strict=True)]
    half = stride / 2
    hover_bands(axes, [shown[0] - half, *middles, shown[-1] + half], texts)


def _deviation(value: Spread, form: Callable[[float], str]) -> str:
    return "" if value.deviation is None else f" ± {form(value.deviation)}"


def _is_finite(value: Any) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False
