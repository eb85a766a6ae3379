"""Figures of predictions: reliability diagrams, agreement, and accuracy by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from oekd_fast.common.text import shortened
from oekd_fast.figures.plotting import ENSEMBLE, new_figure, shared_legend, student_color, whole_numbers
from oekd_fast.reporting.calibration import Calibration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELLED_CLASSES = 20
DIAGRAMS_PER_ROW = 4


def reliability_figure(calibrations: Mapping[str, Calibration]) -> Figure:
    """Draw a reliability diagram of each network: accuracy and share of images of each bin of confidence."""
    columns = min(DIAGRAMS_PER_ROW, len(calibrations))
    rows = -(-len(calibrations) // columns)
    figure = new_figure(2.75 * columns, 2.75 * rows + 0.6)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, (name, calibration) in zip(panels, calibrations.items(), strict=False):
        bins = len(calibration.share)
        left = np.arange(bins) / bins
        _bars(axes, left, calibration.accuracy, 1 / bins, color="tab:blue", alpha=0.75, label="accuracy")
        share = calibration.share.numpy()
        axes.step([*left, 1], [*share, share[-1]], where="post", color="tab:red", linewidth=1, label="share of images")
        axes.plot([0, 1], [0, 1], "--", color="grey", linewidth=1, label="perfect calibration")
        axes.set_title(f"{name}: ECE {calibration.ece:.2f} %", fontsize="medium")
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    for unused in panels[len(calibrations) :]:
        unused.set_axis_off()
    for axes in panels[max(0, len(calibrations) - columns) : len(calibrations)]:
        axes.set_xlabel("confidence")
        axes.tick_params(labelbottom=True)
    figure.supylabel("accuracy of the bin; share of all images", fontsize="medium")
    shared_legend(figure, panels[0])
    return figure


def _bars(axes: Axes, left: np.ndarray, heights: Tensor, width: float, **style) -> None:
    axes.bar(left, heights.nan_to_num().numpy(), width, align="edge", edgecolor="white", linewidth=0.5, **style)


def agreement_figure(names: Sequence[str], shares: Tensor) -> Figure:
    """Draw the agreement of M networks as a matrix; `shares` are in percent, [M, M]."""
    count = len(names)
    figure = new_figure(2.4 + 0.75 * count, 1.2 + 0.65 * count)
    axes = figure.subplots()
    low = shares.min().item()
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=min(low, 99.0), vmax=100, aspect="auto")
    # Numbers are white on the darker half of the colours.
    middle = (min(low, 99.0) + 100) / 2
    for i in range(count):
        for j in range(count):
            value = shares[i, j].item()
            color = "white" if value > middle else "black"
            axes.text(j, i, f"{value:.1f}", ha="center", va="center", color=color, fontsize="small")
    axes.set_xticks(range(count), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), names)
    figure.colorbar(image, label="same predicted class, % of test images")
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
    figure = new_figure(11.5, max(4.2, 1.6 + 0.25 * shown))
    curves, dots = figure.subplots(1, 2, width_ratios=(1, 1.25))
    count, gaps = len(students), (ensemble - students).numpy()
    measured = ~np.isnan(ensemble.numpy())
    for j, row in enumerate(gaps):
        values = np.sort(row[measured])[::-1]
        curves.plot(
            np.arange(1, len(values) + 1), values, color=student_color(j, count), label=f"student {j + 1}",
            marker="." if len(values) <= LABELLED_CLASSES else None,
        )  # fmt: skip
    curves.axhline(0, color="grey", linewidth=0.8)
    curves.set(xlabel="rank of the class, sorted for each student", ylabel="ensemble minus student, points")
    curves.set_title("all classes", fontsize="medium")
    curves.grid(alpha=0.3)
    whole_numbers(curves)

    order = np.argsort(np.where(measured, -gaps[-1], np.inf), kind="stable")[:shown]
    for j in range(count):  # smaller dots of smaller students on top, so that none is hidden
        dots.plot(
            students[j].numpy()[order], range(shown), "o", color=student_color(j, count), markersize=9 - 4 * j / count
        )
    dots.plot(ensemble.numpy()[order], range(shown), "|", color=ENSEMBLE, markersize=14, markeredgewidth=2,
              label="ensemble")  # fmt: skip
    dots.set_yticks(range(shown), [shortened(classes[c], 22) for c in order])
    dots.invert_yaxis()
    dots.set_xlabel("test accuracy, %")
    title = "classes" if shown == len(classes) else f"{shown} of {len(classes)} classes"
    dots.set_title(f"{title} with the largest gap of student {count}", fontsize="medium")
    dots.grid(alpha=0.3)

    handles, labels = (first + second for first, second in zip(*(a.get_legend_handles_labels() for a in (curves, dots)),
                                                               strict=True))  # fmt: skip
    figure.legend(handles, labels, loc="outside lower center", ncols=min(7, len(labels)), fontsize="small")
    return figure
