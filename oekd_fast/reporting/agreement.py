"""Agreement between the predictions of networks, and their accuracy by class."""

from __future__ import annotations

import torch
from torch import Tensor


def agreement(predicted: Tensor) -> Tensor:
    """Return the share of images for which two networks predict the same class, in percent.

    Args:
        predicted: classes that M networks predict for N images, int64 [M, N].

    Returns:
        float64 [M, M], symmetric, with 100 on the diagonal.
    """
    return torch.stack([100 * (predicted == one).double().mean(dim=1) for one in predicted])


def class_accuracy(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return the share of the images of each class that are classified correctly, in percent.

    Args:
        predicted: predicted classes, int64 [M, N].
        labels: true classes, int64 [N].
        num_classes: number of classes, C.

    Returns:
        float64 [M, C]; NaN for a class without images.
    """
    images = torch.bincount(labels, minlength=num_classes)
    correct = torch.stack([torch.bincount(labels[row == labels], minlength=num_classes) for row in predicted])
    return 100 * correct.double() / images
