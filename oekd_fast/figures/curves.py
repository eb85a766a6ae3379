"""Training curves: accuracies, the terms of the loss and the learning rate of each epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oekd_fast.figures.palette import ALONE, ENSEMBLE, IN_FAMILY, NEUTRAL, OF_ENSEMBLE, TEXT, student_color
from oekd_fast.figures.plotting import logarithmic, new_panels, shared_legend, whole_numbers
from oekd_fast.figures.series import Histories, Series, draw_series, series_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FAMILY_PHASE = "ensemble"
# Terms of the training loss that have one value a student, and those that have one for the family.
_TERMS = {"ce": "training cross-entropy, nats", "kd": "distillation loss, nats"}
_FAMILY_TERMS = {"loss": "weighted sum of all terms", "feature": "intermediate loss, not weighted"}
_FEW_EPOCHS = 5  # shorter runs are shown as a whole


@dataclass(frozen=True)
class Panel:
    """Lines that share an axis.

    Args:
        title: what they are, with the unit.
        series: the lines.
        form: function that formats a value.
        percent: whether the values are percentages; otherwise positive ones have a logarithmic axis.
    """

    title: str
    series: Sequence[Series]
    form: Callable[[float], str]
    percent: bool = False


def curve_figure(runs: Sequence[Histories], selected_epochs: Sequence[int]) -> Figure:
    """Draw accuracies, the terms of the loss and the learning rate, each in a panel; those without values are left out.

    Args:
        runs: histories of runs that differ in the seed only. Lines are means and bands standard deviations over runs.
            They end with the run that stopped first.
        selected_epochs: selected epoch of each run.
    """
    panels = [panel for panel in _panels(runs) if panel.series]
    figure, parts = new_panels(len(panels))
    for part, panel in zip(parts, panels, strict=True):
        axes = part.subplots()
        _draw(axes, panel, selected_epochs)
        shared_legend(part, axes)
    return figure


def draw_losses(axes: Axes, runs: Sequence[Histories]) -> None:
    """Draw the cross-entropy (solid) and the distillation loss (dotted) of each student of the family."""
    count = _count(runs)
    cross_entropies, distillation = (
        [
            line
            for j in range(count)
            for line in series_of(
                runs, FAMILY_PHASE, lambda line, j=j: line["train"][term][j], f"student {j + 1}{name}",  # noqa: B023
                student_color(j), style, in_legend=not name,
            )
        ]
        for term, name, style in (("ce", "", "solid"), ("kd", ", distillation", "dotted"))
    )  # fmt: skip
    draw_series(axes, [*cross_entropies, *_not_only_zeros(distillation)], _four_digits)
    _finish_losses(axes)
    axes.set(ylabel="loss, nats", title="training: cross-entropy (solid), distillation (dotted)")


def draw_accuracies(axes: Axes, runs: Sequence[Histories], selected_epochs: Sequence[int]) -> None:
    """Draw the validation accuracies of each student in the family and alone, and of the ensemble."""
    _draw(axes, _accuracies(runs), selected_epochs)


def accuracy_limits(values: Sequence[Sequence[float]]) -> tuple[float, float, bool]:
    """Return the limits of an axis that shows where accuracies end up, and whether it leaves out lower values.

    The axis shows all values of the second half of the epochs, and as much again below them. It shows all values if
    that takes little more, or if there are few epochs.

    Args:
        values: accuracies of each line by epoch, in percent.
    """
    high = max(max(line) for line in values)
    lowest = min(min(line) for line in values)
    late = min(min(line[len(line) // 2 :]) for line in values)
    top = high + max(0.06 * (high - late), 0.2)
    bottom = late - max(high - late, 1.0)
    few = max(len(line) for line in values) < _FEW_EPOCHS
    if few or lowest >= bottom - (high - late):
        return max(0.0, lowest - max(0.06 * (high - lowest), 0.2)), top, False
    return max(0.0, bottom), top, bottom > 0.0


def _draw(axes: Axes, panel: Panel, selected_epochs: Sequence[int]) -> None:
    draw_series(axes, panel.series, panel.form)
    if panel.percent:
        bottom, top, cut = accuracy_limits([line.means for line in panel.series])
        axes.set_ylim(bottom, top)
        if cut:
            axes.set_title(f"lower values than {bottom:.0f} % are not shown", fontsize="small")
        _finish(axes)
    else:
        _finish_losses(axes)
    axes.set_ylabel(panel.title)
    for i, epoch in enumerate(sorted(set(selected_epochs))):
        axes.axvline(
            epoch, color=TEXT, alpha=0.35, linewidth=0.8, zorder=0, label=None if i else "selected epoch"
        )  # fmt: skip
    if any(not line.in_legend for line in panel.series):  # those of students alone
        axes.plot([], [], color=NEUTRAL, linestyle=IN_FAMILY, label="in the family")
        axes.plot([], [], color=NEUTRAL, linestyle=ALONE, label="alone")


def _finish(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    whole_numbers(axes)
    axes.grid()


def _finish_losses(axes: Axes) -> None:
    _finish(axes)
    values = [value for line in axes.lines for value in line.get_ydata()]
    if values and min(values) > 0:
        logarithmic(axes.yaxis)


def _panels(runs: Sequence[Histories]) -> Iterator[Panel]:
    yield _accuracies(runs)
    first = runs[0][FAMILY_PHASE][0]
    train = first["train"]
    lists = [name for name, value in train.items() if isinstance(value, list) and name != "accuracy"]
    for term in lists:
        ensemble = "ensemble_ce" if term == "ce" else None
        lines = _of_networks(runs, "train", term, ensemble)
        yield Panel(_TERMS.get(term, f"training {term}"), _not_only_zeros(lines), _four_digits)
        if term == "ce":
            lines = _of_networks(runs, "validation", term, "ensemble_ce")
            yield Panel("validation cross-entropy, nats", _not_only_zeros(lines), _four_digits)
    scalars = [name for name in train if name not in lists and "accuracy" not in name and name != "ensemble_ce"]
    styles = ("solid", "dashed", "dotted", "dashdot")
    terms = [
        line
        for number, name in enumerate(scalars)
        for line in series_of(
            runs, FAMILY_PHASE, lambda line, name=name: line["train"][name], _FAMILY_TERMS.get(name, name),
            NEUTRAL if number % 2 else TEXT, styles[number % len(styles)],
        )
    ]  # fmt: skip
    yield Panel("training loss of the family", _not_only_zeros(terms), _four_digits)
    rate = series_of(runs, FAMILY_PHASE, lambda line: line["learning_rate"], "learning rate", TEXT)
    yield Panel("learning rate", rate, _four_digits)


def _accuracies(runs: Sequence[Histories]) -> Panel:
    lines = _of_networks(runs, "validation", "accuracy", "ensemble_accuracy")
    return Panel("validation accuracy, %", lines, lambda value: f"{value:.2f}", percent=True)


def _of_networks(runs: Sequence[Histories], split: str, name: str, of_ensemble: str | None) -> list[Series]:
    """Return the lines of each student in the family and alone, and of the ensemble, over the epochs with `split`."""
    lines, count = [], _count(runs)
    runs = [{phase: [line for line in of_phase if split in line] for phase, of_phase in run.items()} for run in runs]
    for j in range(count):
        student, color = f"student {j + 1}", student_color(j)
        lines += series_of(runs, FAMILY_PHASE, lambda line, j=j: line[split][name][j], student, color)
        lines += series_of(
            runs, f"baseline_{j + 1}", lambda line: line[split][name][0], f"{student} alone", color, ALONE,
            in_legend=False,
        )  # fmt: skip
    if of_ensemble is not None:
        lines += series_of(
            runs, FAMILY_PHASE, lambda line: line[split][of_ensemble], "ensemble", ENSEMBLE, OF_ENSEMBLE
        )  # fmt: skip
    return lines


def _count(runs: Sequence[Histories]) -> int:
    return len(runs[0][FAMILY_PHASE][0]["train"]["ce"])


def _not_only_zeros(lines: Sequence[Series]) -> list[Series]:
    """Return the lines of terms that are in use."""
    return [line for line in lines if any(line.means)]


def _four_digits(value: float) -> str:
    return f"{value:.4g}"
