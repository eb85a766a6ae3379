"""How alike networks decide, and class by class how well."""

from __future__ import annotations

import torch
from torch import Tensor


def agreement(predicted: Tensor) -> Tensor:
    """The share of images for which two networks predict the same class, in percent.

    Args:
        predicted: int64 [M, N], the classes that M networks predict for N images.

    Returns:
        float64 [M, M], symmetric, with 100 on the diagonal.
    """
    return torch.stack([100 * (predicted == one).double().mean(dim=1) for one in predicted])


def class_accuracy(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """The share of the images of each class that are predicted right, in percent.

    Args:
        predicted: int64 [M, N].
        labels: int64 [N].
        num_classes: C.

    Returns:
        float64 [M, C]; NaN for a class without images.
    """
    images = torch.bincount(labels, minlength=num_classes)
    right = torch.stack([torch.bincount(labels[row == labels], minlength=num_classes) for row in predicted])
    return 100 * right.double() / images
