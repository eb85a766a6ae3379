"""Shared style of figures: figures without global state, colours, axes and number formats."""

from __future__ import annotations

import contextlib
import io
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oekd_fast.common.files import write_atomically
from oekd_fast.common.text import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure, FigureBase, SubFigure

DPI = 110
PANEL = 5.2, 3.9  # size of a panel in inches: 10 points are readable if it is 350 pixels wide
_STYLE = {
    "text.parse_math": False,  # a dollar sign does not start a formula
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "grid.alpha": 0.15,
    "grid.color": "black",
    "image.composite_image": False,  # images keep their own pixels
    "legend.fontsize": "small",
    "legend.frameon": False,
}
_LEGEND_ENTRIES = 12
_LONGEST_TITLE = 160  # characters; a picture is made as wide as its title


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """Return a white figure of the given size in inches, with a layout that leaves room for all labels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    if title:
        figure.suptitle(shortened(title, _LONGEST_TITLE))
    return figure


def new_panels(count: int, columns: int = 2, size: tuple[float, float] = PANEL) -> tuple[Figure, list[SubFigure]]:
    """Return a figure and its panels, which have a layout of their own each, in rows of `columns`.

    Args:
        count: number of panels.
        columns: the most panels of a row.
        size: width and height of a panel in inches.
    """
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = new_figure(size[0] * columns, size[1] * rows)
    places = figure.add_gridspec(rows, columns)
    return figure, [figure.add_subfigure(places[divmod(number, columns)]) for number in range(count)]


@contextlib.contextmanager
def house_style(settings: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Draw figures in the style of the package, whatever backend and settings the user has chosen.

    Texts are shown as they are: a dollar sign does not start a formula, and nothing is passed to LaTeX.

    Args:
        settings: more settings of matplotlib, which replace those of the style.
    """
    _import_matplotlib()
    from matplotlib import style

    with warnings.catch_warnings(), style.context(["default", _STYLE | dict(settings or {})]):
        # The fonts of matplotlib lack some scripts; their characters are drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield


def png(draw: Callable[[], Figure]) -> bytes:
    """Return the content of a PNG file of the figure that `draw` returns, in the style of the package, extended to
    everything drawn, as the layout may clip titles."""
    _import_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    with house_style():
        figure = draw()
        FigureCanvasAgg(figure)  # becomes the canvas of the figure
        figure.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.12)
    return buffer.getvalue()


def write_png(path: Path, draw: Callable[[], Figure]) -> str | None:
    """Write the figure that `draw` returns to `path`, atomically, for callers whose other results are complete.

    Returns:
        None, or a line that says why there is no picture at `path`. A picture that cannot be drawn or written does not
        raise.
    """
    try:
        write_atomically(path, png(draw))
    except Exception as error:  # drawing runs the code of several packages, which document no set of exceptions
        return (
            f"{path}: the picture could not be written ({str(error) or type(error).__name__}); the results are complete"
        )
    return None


def _import_matplotlib() -> None:
    """Import matplotlib even if the variable MPLBACKEND names a backend that is not available here.

    Importing matplotlib checks the variable and raises ValueError, although drawing a file needs no backend. Notebooks
    set it for all programs that they start.
    """
    if "matplotlib" in sys.modules:
        return
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = backend  # as the import would have done, for later users of pyplot


def number_of_student(axes: Axes, number: int, point: tuple[float, float]) -> None:
    """Write the number of a student above a point."""
    axes.annotate(
        str(number), point, (0, 5), textcoords="offset points", ha="center", va="bottom", fontsize="small",
        fontweight="bold",
    )  # fmt: skip


def shared_legend(figure: FigureBase, axes: Axes, columns: int = 4) -> None:
    """Draw the legend of `axes` below a whole figure or a panel, with as many of `columns` as fit its width.

    Of more than `_LEGEND_ENTRIES` entries some in the middle are left out, which are those of students.
    """
    from matplotlib.lines import Line2D

    handles, labels = axes.get_legend_handles_labels()
    if more := max(0, len(labels) - _LEGEND_ENTRIES):
        left_out = slice(_LEGEND_ENTRIES // 2, _LEGEND_ENTRIES // 2 + more + 1)
        handles[left_out], labels[left_out] = [Line2D([], [], linestyle="none")], [f"… {more + 1} more"]
    if labels:
        room = 72 * figure.bbox.width / figure.dpi
        fitting = (n for n in range(min(columns, len(labels)), 1, -1) if _legend_width(labels, n) <= room)
        figure.legend(handles, labels, loc="outside lower center", ncols=next(fitting, 1))


def _legend_width(labels: Sequence[str], columns: int) -> float:
    """Return about the width in points of a legend, whose columns have equal numbers of labels or one more."""
    rows, more = divmod(len(labels), columns)
    ends = [0, *accumulate(rows + (column < more) for column in range(columns))]
    # A line and the gaps around it take 42 points, and a character 5.2.
    return sum(42 + 5.2 * max(map(len, labels[start:end])) for start, end in pairwise(ends))


def logarithmic(axis: Axis) -> None:
    """Make an axis logarithmic, with tick labels such as 0.2, 50 k and 1 M at round numbers; call it after drawing."""
    from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter, NullLocator

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    thousands = EngFormatter()
    axis.set_major_locator(FixedLocator(round_numbers(*sorted(axis.get_view_interval()))))
    axis.set_major_formatter(FuncFormatter(lambda value, _: thousands(value) if value >= 1000 else f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def round_numbers(low: float, high: float) -> list[float]:
    """Return about three to seven round numbers between two positive ones, evenly spread on a logarithmic axis."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for leading in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        ticks = [float(f"{digit}e{decade}") for decade in decades for digit in leading]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            return ticks[:: -(-len(ticks) // 7)]
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [tick for tick in ticks.tolist() if low <= tick <= high]


def percent_axis(axes: Axes) -> None:
    """Add margins above and below the data of a percentage, without extending the axis below 0."""
    axes.margins(y=0.14)
    axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))


def whole_numbers(axes: Axes) -> None:
    """Restrict the ticks of the horizontal axis to integers, for epochs or ranks."""
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
