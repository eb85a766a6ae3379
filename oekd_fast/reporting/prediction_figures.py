"""Figures of predictions: reliability diagrams, agreement, and accuracy by class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from oekd_fast.common.text import shortened
from oekd_fast.figures.cells import draw_cells
from oekd_fast.figures.hover import hover_boxes, hover_points
from oekd_fast.figures.palette import ALONE, NEUTRAL, SHADE, TEXT, network_style, student_color, student_marker
from oekd_fast.figures.plotting import PANEL, new_figure, new_panels, shared_legend, whole_numbers
from oekd_fast.reporting.calibration import Bin, Calibration
from oekd_fast.reporting.class_rows import draw_class_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELLED_CLASSES = 20
DIAGRAMS_PER_ROW = 4


def reliability_figure(calibrations: Mapping[str, Calibration]) -> Figure:
    """Draw a reliability diagram of each network: the accuracy of images by their confidence.

    Bins with few images are merged with their neighbours. Points are at the mean confidence of a bin, and their error
    bars are standard errors of its accuracy.
    """
    figure, panels = new_panels(len(calibrations), DIAGRAMS_PER_ROW, size=(2.6, 2.7))
    for panel, (name, calibration) in zip(panels, calibrations.items(), strict=True):
        axes = panel.subplots()
        _draw_reliability(axes, name, calibration.merged())
        axes.set_title(f"{name}: ECE {calibration.ece:.2f} %")
    return figure


def _draw_reliability(axes: Axes, name: str, bins: Sequence[Bin]) -> None:
    color, line = network_style(name)
    alone = line == ALONE
    axes.bar(
        [b.low for b in bins], [b.accuracy for b in bins], [b.high - b.low for b in bins], align="edge",
        facecolor="none" if alone else (color, 0.25), edgecolor=(color, 0.6), linewidth=0.8,
        linestyle="dashed" if alone else "solid",
    )  # fmt: skip
    axes.plot([0, 1], [0, 1], "--", color=NEUTRAL, linewidth=1)
    errors = [math.sqrt(b.accuracy * (1 - b.accuracy) / b.images) for b in bins]
    axes.errorbar(
        [b.confidence for b in bins], [b.accuracy for b in bins], yerr=errors, fmt="o", color=color, markersize=4,
        capsize=2, markerfacecolor="white" if alone else color,
    )  # fmt: skip
    texts = [
        f"{name}, confidence {b.low:.2f} to {b.high:.2f}: {b.images:,} image{'s' if b.images > 1 else ''}\n"
        f"{b.correct:,} correct: accuracy {100 * b.accuracy:.1f} ± {100 * error:.1f} %\n"
        f"mean confidence {100 * b.confidence:.1f} %"
        for b, error in zip(bins, errors, strict=True)
    ]
    hover_boxes(axes, [(b.low, 0.0, b.high, 1.0) for b in bins], texts)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="confidence", ylabel="accuracy")
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])


def agreement_figure(names: Sequence[str], shares: Tensor) -> Figure:
    """Draw the agreement of M networks as a matrix; `shares` are in percent, [M, M]."""
    count = len(names)
    figure = new_figure(1.6 + 0.62 * max(count, 4), 1.2 + 0.5 * max(count, 3))
    axes = figure.subplots()
    values = shares.numpy()
    low = min(values.min().item(), 99.0)
    draw_cells(
        axes,
        (values - low) / (100 - low),
        np.full(values.shape, SHADE),
        [[f"{value:.1f}" for value in row] for row in values],
        [
            [
                f"{first} and {second}: the same class for {value:.2f} % of the test images"
                for second, value in zip(names, row, strict=True)
            ]
            for first, row in zip(names, values, strict=True)
        ],
    )
    axes.set_xticks(range(count), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), names)
    axes.set_title("same predicted class, % of test images")
    return figure


def class_figure(classes: Sequence[str], students: Tensor, ensemble: Tensor) -> Figure:
    """Draw the gaps between students and ensemble by class.

    The left panel has the sorted gaps of all classes. The right panel has the accuracies of the classes with the
    largest gap of the smallest student.

    Args:
        classes: name of each of the C classes.
        students: accuracies in percent, [S, C]; NaN for a class without images.
        ensemble: accuracies in percent, [C]; NaN for a class without images.
    """
    shown = min(len(classes), LABELLED_CLASSES)
    figure, (left, right) = new_panels(2, size=(PANEL[0], max(PANEL[1], 1.7 + 0.21 * shown)))
    curves, dots = left.subplots(), right.subplots()
    count, gaps = len(students), (ensemble - students).numpy()
    measured = ~np.isnan(ensemble.numpy())
    _draw_gaps(curves, classes, gaps, measured)
    shared_legend(left, curves)
    order = np.argsort(np.where(measured, -gaps[-1], np.inf), kind="stable")[:shown]
    names = [*(f"student {j + 1}" for j in range(count)), "ensemble"]
    values = np.concatenate((students.numpy(), ensemble.numpy()[None]))[:, order]
    draw_class_rows(dots, [shortened(classes[c], 22) for c in order], values, names)
    dots.set_xlabel("test accuracy, %")
    title = "classes" if shown == len(classes) else f"{shown} of {len(classes)} classes"
    dots.set_title(f"{title} with the largest gap of student {count}")
    shared_legend(right, dots)
    return figure


def _draw_gaps(axes: Axes, classes: Sequence[str], gaps: np.ndarray, measured: np.ndarray) -> None:
    """Draw the gap of each student, float [S, C] in points, from the largest to the smallest."""
    for j, row in enumerate(gaps):
        order = np.flatnonzero(measured)[np.argsort(-row[measured], kind="stable")]
        ranks = np.arange(1, len(order) + 1)
        few = len(order) <= LABELLED_CLASSES
        axes.plot(
            ranks, row[order], color=student_color(j), label=f"student {j + 1}",
            marker=student_marker(j) if few else None, markersize=4, linewidth=1.3,
        )  # fmt: skip
        every = slice(None, None, 1 + len(order) // (5 * LABELLED_CLASSES))
        texts = [f"student {j + 1}, {shortened(classes[c], 40)}: {row[c]:+.2f} points" for c in order[every]]
        hover_points(axes, ranks[every], row[order][every], texts, radius=4)
    axes.axhline(0, color=TEXT, linewidth=0.8)
    axes.set(xlabel="rank of the class, sorted for each student", ylabel="ensemble minus student, points")
    axes.set_title("all classes")
    axes.grid()
    whole_numbers(axes)
