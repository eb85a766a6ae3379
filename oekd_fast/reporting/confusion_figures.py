"""Figures of confusions: a matrix of each network if there are few classes, else the worst classes and pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from oekd_fast.common.text import shortened
from oekd_fast.figures.cells import draw_cells
from oekd_fast.figures.palette import ERROR, NEUTRAL
from oekd_fast.figures.plotting import new_panels, shared_legend
from oekd_fast.reporting.class_rows import draw_class_rows
from oekd_fast.reporting.confusion import Confusion

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MATRIX_CLASSES = 25  # the most for which a matrix is readable
SHOWN = 20  # classes and pairs that are shown if there are more


def confusion_figure(classes: Sequence[str], confusions: Mapping[str, Confusion], shown: Sequence[str] = ()) -> Figure:
    """Draw the confusions of students, and of the ensemble as the last network.

    Args:
        classes: name of each class.
        confusions: the counts of each network by its name.
        shown: names of the networks that have a matrix; by default the smallest student and the ensemble. If there are
            more classes than `MATRIX_CLASSES`, all networks are drawn in the rows of classes and of pairs of classes.
    """
    if len(classes) <= MATRIX_CLASSES:
        return _matrices(classes, {name: confusions[name] for name in shown or [*confusions][-2:]})
    return _worst([shortened(name, 22) for name in classes], confusions)


def _matrices(classes: Sequence[str], confusions: Mapping[str, Confusion]) -> Figure:
    count = len(classes)
    labels = [shortened(name, 16) for name in classes]
    longest = max(map(len, labels))
    turned = longest > 2
    side = 0.26 * count + 0.9
    size = max(side + 0.075 * longest + 0.5, 3.0), max(side + (0.075 * longest if turned else 0.2), 2.6)
    figure, panels = new_panels(len(confusions), size=size)
    # One scale for all networks, so that their colours can be compared.
    most = max([1, *(each.pairs[:, 2].max().item() for each in confusions.values() if len(each.pairs))])
    for panel, (name, each) in zip(panels, confusions.items(), strict=True):
        axes = panel.subplots()
        _draw_matrix(axes, name, classes, each, most)
        overall = 100 * each.correct.sum().item() / each.images.sum().item()
        axes.set_title(f"{name}: {overall:.2f} %")
        anchor = {"rotation": 90, "ha": "right", "va": "center", "rotation_mode": "anchor"} if turned else {}
        axes.set_xticks(range(count), labels, fontsize="small", **anchor)
        axes.set_yticks(range(count), labels, fontsize="small")
        axes.set(xlabel="predicted class", ylabel="true class", aspect="equal")
        recall = axes.secondary_yaxis("right")
        texts = [f"{value:.1f}" if value == value else "-" for value in each.recall.tolist()]
        recall.set_yticks(range(count), texts, fontsize="small")
        recall.set_ylabel("recall, %", fontsize="small")
        recall.tick_params(length=0)
        recall.spines[:].set_visible(False)
    return figure


def _draw_matrix(axes: Axes, name: str, classes: Sequence[str], each: Confusion, most: int) -> None:
    """Draw a matrix of counts: the diagonal in grey, errors darker up to the count `most`, and no zeros."""
    matrix, images = each.matrix().numpy(), each.images.tolist()
    diagonal = np.eye(len(classes), dtype=bool)

    def text(true: int, taken: int) -> str:
        count = int(matrix[true, taken])
        share = 100 * count / max(images[true], 1)
        names = f"true {shortened(classes[true], 40)}, predicted {shortened(classes[taken], 40)}"
        return f"{name}\n{names}\n{count:,} of {images[true]:,} images, {share:.1f} %"

    places = range(len(classes))
    draw_cells(
        axes,
        np.where(diagonal, 0.3, 0.15 + 0.85 * matrix / most),
        np.where(diagonal, NEUTRAL, ERROR),
        [[f"{count}" if count else "" for count in row] for row in matrix.tolist()],
        [[text(true, taken) for taken in places] for true in places],
        fontsize="x-small",
    )


def _worst(classes: Sequence[str], confusions: Mapping[str, Confusion]) -> Figure:
    """Draw the pairs of classes that the ensemble confuses most, and the classes with its lowest recall."""
    ensemble = list(confusions.values())[-1]
    pairs = ensemble.pairs[:SHOWN].tolist()
    recalls = np.stack([each.recall.numpy() for each in confusions.values()])
    order = np.argsort(recalls[-1], kind="stable")[:SHOWN]  # NaN comes last
    order = order[~np.isnan(recalls[-1, order])]
    shares = np.array(
        [[100 * each.count(true, taken) / each.images[true].item() for true, taken, _ in pairs]
         for each in confusions.values()]
    )  # fmt: skip
    figure, (left, right) = new_panels(2, size=(6.0, 1.5 + 0.23 * SHOWN))
    of_pairs, of_classes = left.subplots(), right.subplots()
    names = [f"{classes[true]} → {classes[taken]}" for true, taken, _ in pairs]
    draw_class_rows(of_pairs, names, shares, list(confusions))
    of_pairs.set(title="most confused pairs of classes", xlabel="images of the first class taken for the second, %")
    draw_class_rows(of_classes, [classes[c] for c in order], recalls[:, order], list(confusions))
    of_classes.set(title="classes with the lowest recall", xlabel="recall, %")
    for panel, axes in ((left, of_pairs), (right, of_classes)):
        shared_legend(panel, axes)
    return figure
