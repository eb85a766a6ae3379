"""Texts that an SVG shows under the pointer. Pictures in other formats are unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Transform

RADIUS = 6.5  # points


def hover_points(
    axes: Axes, x: Sequence[float], y: Sequence[float], texts: Sequence[str], radius: float = RADIUS
) -> None:
    """Show ``texts[i]`` within `radius` points of (``x[i]``, ``y[i]``); points that are not finite are left out."""
    points = np.stack(np.broadcast_arrays(np.asarray(x, float), np.asarray(y, float)), axis=-1)
    _add(axes, np.stack((points, points), axis=1), texts, radius)


def hover_boxes(axes: Axes, boxes: Sequence[tuple[float, float, float, float]], texts: Sequence[str]) -> None:
    """Show ``texts[i]`` over ``boxes[i]``: left, bottom, right and top in the coordinates of the data."""
    _add(axes, np.asarray(boxes, float).reshape(-1, 2, 2), texts)


def hover_bands(axes: Axes, edges: Sequence[float], texts: Sequence[str]) -> None:
    """Show ``texts[i]`` at all heights between ``edges[i]`` and ``edges[i + 1]`` of the horizontal axis."""
    corners = [((left, 0.0), (right, 1.0)) for left, right in zip(edges[:-1], edges[1:], strict=True)]
    _add(axes, np.asarray(corners, float).reshape(-1, 2, 2), texts, transform=axes.get_xaxis_transform())


def hover_rows(axes: Axes, places: Sequence[float], texts: Sequence[str], height: float = 1.0) -> None:
    """Show ``texts[i]`` over the whole width of the axes within `height` / 2 of ``places[i]`` on the vertical axis."""
    corners = [((0.0, place - height / 2), (1.0, place + height / 2)) for place in places]
    _add(axes, np.asarray(corners, float).reshape(-1, 2, 2), texts, transform=axes.get_yaxis_transform())


def _add(
    axes: Axes,
    corners: np.ndarray,
    texts: Sequence[str],
    radius: float | None = None,
    transform: Transform | None = None,
) -> None:
    from oekd_fast.figures.targets import Targets

    if len(corners) != len(texts):
        raise ValueError(f"texts: expected {len(corners)} texts, got {len(texts)}")
    finite = np.isfinite(corners).all(axis=(1, 2))
    targets = Targets(corners[finite], [text for text, kept in zip(texts, finite, strict=True) if kept], radius)
    if transform is not None:
        targets.set_transform(transform)
    axes.add_artist(targets)
