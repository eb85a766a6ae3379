"""Class weights that make up for classes of different sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from oekd_fast.data.error import DataError


def balanced_class_weights(labels: Tensor, classes: Sequence[str]) -> Tensor:
    """Return n / (C n_c) for n training images, C classes, and n_c images of class c.

    All classes then have the same share of a weighted sum over the images, and the mean weight of an image is 1.

    Args:
        labels: int64 [n], in [0, C).
        classes: names of the C classes.

    Returns:
        float32 [C] on the CPU.

    Raises:
        DataError: a class has no image, so that its weight is unknown.
    """
    counts = torch.bincount(labels.cpu(), minlength=len(classes))
    if not counts.all():
        name = classes[int((counts == 0).nonzero()[0])]
        raise DataError(
            f"class_weights: expected training images of every class with 'balanced', got none of the class {name!r}"
        )
    return (len(labels) / (len(classes) * counts.double())).float()
