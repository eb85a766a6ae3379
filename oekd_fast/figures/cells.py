"""Matrices of numbers whose cells are shaded over the background of the page, so that text on them is readable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from oekd_fast.figures.hover import hover_boxes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DARKEST = 0.6  # opacity of the darkest cell; the contrast of its text is at least 4.5 on light and dark pages


def draw_cells(
    axes: Axes,
    shares: np.ndarray,
    colors: np.ndarray | Sequence[Sequence[str]],
    texts: Sequence[Sequence[str]],
    hover: Sequence[Sequence[str]],
    fontsize: float | str = "small",
) -> None:
    """Draw a matrix with a cell at each (column, row), the first row at the top. Cells without text are left out.

    Args:
        axes: axes of the figure.
        shares: darkness of each cell, float [R, C] in [0, 1].
        colors: colour of each cell, [R, C].
        texts: text of each cell, [R, C].
        hover: text under the pointer of each cell, [R, C].
        fontsize: size of the texts.
    """
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import to_rgba

    rows, columns = np.shape(shares)
    cells = [(row, column) for row in range(rows) for column in range(columns) if texts[row][column]]
    boxes = [(column - 0.5, row - 0.5, column + 0.5, row + 0.5) for row, column in cells]
    corners = [((x0, y0), (x1, y0), (x1, y1), (x0, y1)) for x0, y0, x1, y1 in boxes]
    faces = [to_rgba(colors[row][column], DARKEST * float(shares[row, column])) for row, column in cells]
    axes.add_collection(PolyCollection(corners, facecolors=faces, edgecolors="none"), autolim=False)
    for row, column in cells:
        axes.text(column, row, texts[row][column], ha="center", va="center", fontsize=fontsize)
    hover_boxes(axes, boxes, [hover[row][column] for row, column in cells])
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
