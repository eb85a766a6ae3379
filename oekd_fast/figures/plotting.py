"""Shared style of figures: figures without global state, colours, axes and number formats."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

FAMILY, ALONE, ENSEMBLE = "tab:blue", "tab:orange", "black"
DPI = 110


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """Return a white figure of the given size in inches, with a layout that leaves room for all labels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    if title:
        figure.suptitle(title)
    return figure


def png(figure: Figure) -> bytes:
    """Return the content of a PNG file of the figure, extended to everything drawn, as the layout may clip titles."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.12)
    return buffer.getvalue()


def student_color(j: int, count: int) -> tuple[float, float, float, float]:
    """Return the colour of student `j` of `count`, counted from 0; wider students are darker."""
    from matplotlib import colormaps

    return colormaps["viridis"](0.88 * j / max(count - 1, 1))


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


def shortened(text: str, length: int) -> str:
    """Return `text` cut to `length` characters, with an ellipsis if it was longer."""
    return text if len(text) <= length else text[: length - 1] + "…"
