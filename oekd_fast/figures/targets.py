"""Invisible artist that holds the texts that a figure shows under the pointer; this module imports matplotlib."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist


class Targets(Artist):
    """Areas of an axes with a text each. It draws nothing; `oekd_fast.figures.svg` reads it.

    Args:
        corners: two opposite corners of each area, float [N, 2, 2] of (x, y), in the coordinates of the artist's
            transform, which is that of the data by default. The corners of a circle are both its centre.
        texts: text of each area.
        radius: radius of circles in points; None for rectangles.
    """

    def __init__(self, corners: np.ndarray, texts: Sequence[str], radius: float | None = None) -> None:
        super().__init__()
        self.corners, self.texts, self.radius = corners, tuple(texts), radius
        self.set_in_layout(False)
