"""Dots of networks in a row for each class or pair of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from oekd_fast.figures.hover import hover_rows
from oekd_fast.figures.palette import ENSEMBLE, network_style, student_marker

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_class_rows(axes: Axes, rows: Sequence[str], values: np.ndarray, networks: Sequence[str]) -> None:
    """Draw a row with a dot for each student, and a line for the ensemble.

    Args:
        axes: axes of the figure.
        rows: name of each row.
        values: percentages, float [M, R].
        networks: names of the M networks, the ensemble last.
    """
    places, students = np.arange(len(rows)), len(networks) - 1
    for j, network in enumerate(networks[:-1]):  # smaller dots of smaller students on top, so that none is hidden
        axes.plot(
            values[j], places, student_marker(j), color=network_style(network)[0], markersize=8 - 4 * j / students,
            label=network,
        )  # fmt: skip
    axes.plot(values[-1], places, "|", color=ENSEMBLE, markersize=13, markeredgewidth=2, label=networks[-1])
    texts = [
        "\n".join([name, *(f"{network}: {value:.2f} %" for network, value in zip(networks, column, strict=True))])
        for name, column in zip(rows, values.T, strict=True)
    ]
    hover_rows(axes, places, texts)
    axes.set_yticks(places, rows, fontsize="small")
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axes.grid()
