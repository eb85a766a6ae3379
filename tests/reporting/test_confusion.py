"""Confusions of classes: counts compared with counts made by hand, their data, and their figures."""

import json
from xml.etree import ElementTree

import pytest
import torch

from oekd_fast.figures.plotting import png
from oekd_fast.figures.svg import svg
from oekd_fast.reporting.agreement import class_accuracy
from oekd_fast.reporting.confusion import confusion, confusion_data
from oekd_fast.reporting.confusion_figures import confusion_figure

LABELS = torch.tensor([0, 0, 0, 1, 1, 1, 3])
PREDICTED = torch.tensor([0, 1, 1, 1, 3, 0, 3])


def test_counts_of_every_pair():
    counted = confusion(PREDICTED, LABELS, 4)
    assert counted.matrix().tolist() == [[1, 2, 0, 0], [1, 1, 0, 1], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert counted.pairs.tolist() == [[0, 1, 2], [1, 0, 1], [1, 3, 1]]
    assert (counted.count(0, 1), counted.count(0, 3)) == (2, 0)
    assert counted.images.tolist() == [3, 3, 0, 1] and counted.correct.tolist() == [1, 1, 0, 1]
    assert counted.recall[2].isnan()
    torch.testing.assert_close(counted.recall, class_accuracy(PREDICTED[None], LABELS, 4)[0], equal_nan=True)


def test_memory_does_not_grow_with_the_square_of_the_classes():
    labels = torch.tensor([0, 10**6 - 1, 7])
    counted = confusion(torch.tensor([10**6 - 1, 0, 7]), labels, 10**6)
    assert counted.pairs.tolist() == [[0, 10**6 - 1, 1], [10**6 - 1, 0, 1]]


def test_the_data_hold_all_counts_as_json():
    data = confusion_data(list("abcd"), {"ensemble": confusion(PREDICTED, LABELS, 4)}, runs=2)
    assert json.loads(json.dumps(data)) == {
        "classes": ["a", "b", "c", "d"],
        "runs": 2,
        "images": [3, 3, 0, 1],
        "networks": [
            {
                "name": "ensemble",
                "recall": [33.3333, 33.3333, None, 100.0],
                "confusions": [[0, 1, 2], [1, 0, 1], [1, 3, 1]],
            }
        ],
    }


def drawn(classes, wrong):
    """Return the figure of two students and the ensemble, which take `wrong` images of each class for the next one."""
    labels = torch.arange(10 * classes) % classes
    late = torch.arange(10 * classes) >= (10 - wrong) * classes
    networks = {}
    for name, share in (("student 1", 1), ("student 2", 2), ("ensemble", 1)):
        predicted = torch.where(late & (labels % share == 0), (labels + 1) % classes, labels)
        networks[name] = confusion(predicted, labels, classes)
    return confusion_figure([f"a class with the long name {c}" for c in range(classes)], networks)


def test_few_classes_are_a_matrix_of_each_network():
    figure = drawn(4, wrong=3)
    assert [axes.get_title() for axes in figure.axes] == ["student 2: 85.00 %", "ensemble: 70.00 %"]
    cells = {(text.get_position()): text.get_text() for text in figure.axes[1].texts}
    assert cells == {(c, c): "7" for c in range(4)} | {((c + 1) % 4, c): "3" for c in range(4)}
    smallest, _ = ElementTree.fromstring(svg(figure, "confusions"))
    assert [title.text for title in smallest.iter("title")][:2] == [
        "student 2\ntrue a class with the long name 0, predicted a class with the long name 0\n7 of 10 images, 70.0 %",
        "student 2\ntrue a class with the long name 0, predicted a class with the long name 1\n3 of 10 images, 30.0 %",
    ]
    (recall,) = figure.axes[0].child_axes
    assert [tick.get_text() for tick in recall.get_yticklabels()] == ["70.0", "100.0", "70.0", "100.0"]


def test_the_networks_of_the_matrices_can_be_chosen():
    counted = {name: confusion(PREDICTED, LABELS, 4) for name in ("student 1", "student 2", "ensemble")}
    figure = confusion_figure(list("abcd"), counted, ["student 1"])
    assert [axes.get_title() for axes in figure.axes] == ["student 1: 42.86 %"]


def test_a_student_without_errors_has_a_matrix():
    figure = drawn(2, wrong=0)
    assert [text.get_text() for text in figure.axes[0].texts] == ["10", "10"]


@pytest.mark.parametrize("wrong", [0, 3])
def test_many_classes_are_the_worst_pairs_and_classes(wrong):
    figure = drawn(100, wrong)
    pairs, classes = figure.axes
    assert len(pairs.get_yticklabels()) == (20 if wrong else 0) and len(classes.get_yticklabels()) == 20
    if wrong:
        assert pairs.get_yticklabels()[0].get_text() == "a class with the long… → a class with the long…"
        assert [list(line.get_xdata()[:3]) for line in pairs.lines] == [[30, 30, 30], [30, 0, 30], [30, 30, 30]]
    assert png(lambda: figure).startswith(b"\x89PNG")
