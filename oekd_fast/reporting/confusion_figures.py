"""Figures of confusions: a matrix for each network if there are few classes, else the worst classes and pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from oekd_fast.common.text import shortened
from oekd_fast.figures.plotting import ENSEMBLE, new_figure, student_color
from oekd_fast.reporting.confusion import Confusion

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MATRIX_CLASSES = 20  # the most for which a matrix is readable
SHOWN = 20  # classes and pairs that are shown if there are more


def confusion_figure(classes: Sequence[str], confusions: Mapping[str, Confusion]) -> Figure:
    """Draw the confusions of students, and of the ensemble as the last network.

    Args:
        classes: name of each class.
        confusions: the counts of each network by its name.
    """
    if len(classes) <= MATRIX_CLASSES:
        return _matrices([shortened(name, 16) for name in classes], confusions)
    return _worst([shortened(name, 22) for name in classes], confusions)


def _matrices(classes: Sequence[str], confusions: Mapping[str, Confusion]) -> Figure:
    count = len(classes)
    rows = -(-len(confusions) // (3 if count <= 12 else 2))
    columns = -(-len(confusions) // rows)
    side = 1.9 + 0.27 * count
    figure = new_figure((side + 0.4) * columns, side * rows + 0.3)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    matrices = {name: each.matrix().numpy() for name, each in confusions.items()}
    # One scale for all networks, so that their colours can be compared.
    most = max((matrix - np.diag(np.diag(matrix))).max() for matrix in matrices.values())
    for axes, (name, each) in zip(panels, confusions.items(), strict=False):
        _draw_matrix(axes, matrices[name], max(int(most), 1))
        overall = 100 * each.correct.sum().item() / each.images.sum().item()
        axes.set_title(f"{name}: {overall:.2f} %", fontsize="medium")
        axes.set_xticks(range(count), classes, rotation=90 if max(map(len, classes)) > 2 else 0, fontsize="small")
        axes.set_yticks(range(count), classes, fontsize="small")
        axes.tick_params(length=0)
        recall = axes.secondary_yaxis("right")
        texts = [f"{value:.1f}" if value == value else "-" for value in each.recall.tolist()]
        recall.set_yticks(range(count), texts, fontsize="small")
        recall.set_ylabel("recall, %", fontsize="small")
        recall.tick_params(length=0)
    for unused in panels[len(confusions) :]:
        unused.set_axis_off()
    figure.supxlabel("predicted class", fontsize="medium")
    figure.supylabel("true class", fontsize="medium")
    return figure


def _draw_matrix(axes: Axes, matrix: np.ndarray, most: int) -> None:
    """Draw a matrix of counts: the diagonal in grey, errors in red, darker up to the count `most`, and no zeros."""
    errors = matrix.astype(float)
    np.fill_diagonal(errors, 0)
    axes.imshow(np.where(errors > 0, errors, np.nan), cmap="Reds", vmin=0, vmax=1.3 * most)
    axes.imshow(np.where(np.eye(len(matrix)) > 0, 0.25, np.nan), cmap="Greys", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(matrix), strict=True):
        dark = row != column and matrix[row, column] > 0.7 * most
        axes.text(column, row, f"{matrix[row, column]}", ha="center", va="center", fontsize="x-small",
                  color="white" if dark else "black")  # fmt: skip


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
    figure = new_figure(14, 1.8 + 0.25 * SHOWN)
    of_pairs, of_classes = figure.subplots(1, 2, width_ratios=(1.25, 1))
    names = [f"{classes[true]} → {classes[taken]}" for true, taken, _ in pairs]
    _dots(of_pairs, names, shares, list(confusions))
    of_pairs.set_title("pairs that the ensemble confuses most: true → predicted", fontsize="medium")
    of_pairs.set_xlabel("images of the true class that are taken for the other, %")
    _dots(of_classes, [classes[c] for c in order], recalls[:, order], list(confusions))
    of_classes.set_title("classes with the lowest recall of the ensemble", fontsize="medium")
    of_classes.set_xlabel("recall, %")
    handles, labels = of_classes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(7, len(labels)), fontsize="small")
    return figure


def _dots(axes: Axes, names: Sequence[str], values: np.ndarray, networks: Sequence[str]) -> None:
    """Draw a row for each name with a dot for each student, and a line for the ensemble, the last network."""
    rows, students = np.arange(len(names)), len(networks) - 1
    for j, network in enumerate(networks[:-1]):  # smaller dots of smaller students on top, so that none is hidden
        size = 9 - 4 * j / students
        axes.plot(values[j], rows, "o", color=student_color(j, students), markersize=size, label=network)
    axes.plot(values[-1], rows, "|", color=ENSEMBLE, markersize=14, markeredgewidth=2, label=networks[-1])
    axes.set_yticks(rows, names, fontsize="small")
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
