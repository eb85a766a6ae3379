"""Which classes a network takes for which others, and the recall of each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Confusion:
    """Counts of the predictions of one network. Only pairs of classes that occur are stored, so that C may be large.

    Args:
        images: images of each class, int64 [C].
        correct: those that are classified correctly, int64 [C].
        pairs: the wrong predictions, int64 [P, 3]: true class, predicted class and number of images, the most first.
    """

    images: Tensor
    correct: Tensor
    pairs: Tensor

    @property
    def recall(self) -> Tensor:
        """Share of the images of each class that are classified correctly, in percent, float64 [C]; NaN without any."""
        return 100 * self.correct.double() / self.images

    def matrix(self) -> Tensor:
        """Return the number of images of each true class (row) and predicted class (column), int64 [C, C]."""
        matrix = torch.diag(self.correct)
        matrix[self.pairs[:, 0], self.pairs[:, 1]] = self.pairs[:, 2]
        return matrix

    def count(self, true: int, predicted: int) -> int:
        """Return the number of images of one wrong pair of classes."""
        return int(self.pairs[(self.pairs[:, 0] == true) & (self.pairs[:, 1] == predicted), 2].sum())


def confusion(predicted: Tensor, labels: Tensor, num_classes: int) -> Confusion:
    """Count the predictions of one network.

    Args:
        predicted: predicted classes, int64 [N].
        labels: true classes, int64 [N].
        num_classes: number of classes, C.
    """
    wrong = predicted != labels
    codes, counts = torch.unique(labels[wrong] * num_classes + predicted[wrong], return_counts=True)
    order = torch.argsort(counts, descending=True, stable=True)  # equal counts stay in the order of the classes
    true, taken_for = codes[order] // num_classes, codes[order] % num_classes
    return Confusion(
        images=torch.bincount(labels, minlength=num_classes),
        correct=torch.bincount(labels[~wrong], minlength=num_classes),
        pairs=torch.stack((true, taken_for, counts[order]), dim=1),
    )


def confusion_data(classes: Sequence[str], confusions: Mapping[str, Confusion], runs: int) -> dict[str, Any]:
    """Return the content of confusion.json.

    ``classes``: names. ``runs``: number of runs whose predictions are counted together. ``images``: test images of each
    class, counted once a run. ``networks``: for each its ``name``, its ``recall`` of each class in percent (null for a
    class without images), and its ``confusions``, [true class, predicted class, images] with classes counted from 0,
    the most first. Other images are classified correctly.
    """
    first = next(iter(confusions.values()))
    return {
        "classes": list(classes),
        "runs": runs,
        "images": first.images.tolist(),
        "networks": [
            {
                "name": name,
                "recall": [round(value, 4) if value == value else None for value in each.recall.tolist()],
                "confusions": each.pairs.tolist(),
            }
            for name, each in confusions.items()
        ],
    }
