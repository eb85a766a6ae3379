"""Shared style of figures: figures without global state, colours, axes and number formats."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from oekd_fast.common.files import write_atomically
from oekd_fast.common.text import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

FAMILY, ALONE, ENSEMBLE = "tab:blue", "tab:orange", "black"
DPI = 110
_LONGEST_TITLE = 160  # characters; a picture is made as wide as its title


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """Return a white figure of the given size in inches, with a layout that leaves room for all labels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    if title:
        figure.suptitle(shortened(title, _LONGEST_TITLE))
    return figure


def png(draw: Callable[[], Figure]) -> bytes:
    """Return the content of a PNG file of the figure that `draw` returns, extended to everything drawn, as the layout
    may clip titles.

    The figure has matplotlib's default style and is drawn by its Agg canvas, whatever backend and settings the user has
    chosen. Texts are shown as they are: a dollar sign does not start a formula, and nothing is passed to LaTeX.
    """
    _import_matplotlib()
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    with warnings.catch_warnings(), style.context(["default", {"text.parse_math": False}]):
        # The fonts of matplotlib lack some scripts; their characters are drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
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


def student_color(j: int, count: int) -> tuple[float, float, float, float]:
    """Return the colour of student `j` of `count`, counted from 0; wider students are darker."""
    from matplotlib import colormaps

    return colormaps["viridis"](0.88 * j / max(count - 1, 1))


def number_of_student(axes: Axes, number: int, point: tuple[float, float], *, above: bool = True) -> None:
    """Write the number of a student above or below its point."""
    axes.annotate(
        str(number), point, (0, 9 if above else -9), textcoords="offset points",
        ha="center", va="bottom" if above else "top", fontsize="x-small",
        bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )  # fmt: skip


def shared_legend(figure: Figure, axes: Axes, columns: int = 4) -> None:
    """Draw the legend of `axes` below the whole figure."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)), fontsize="small")


def logarithmic(axis: Axis) -> None:
    """Make an axis logarithmic, with tick labels such as 0.2, 50 k and 1 M."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    thousands = EngFormatter()
    axis.set_major_formatter(FuncFormatter(lambda value, _: thousands(value) if value >= 1000 else f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def percent_axis(axes: Axes) -> None:
    """Add margins above and below the data of a percentage, without extending the axis below 0."""
    axes.margins(y=0.12)
    axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))


def whole_numbers(axes: Axes) -> None:
    """Restrict the ticks of the horizontal axis to integers, for epochs or ranks."""
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
