"""The images that a network classifies worst: wrong predictions with the highest cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from oekd_fast.data import ImageDataset, centre
from oekd_fast.reporting.predictions import Predictions


@dataclass(frozen=True)
class WorstImages:
    """Wrong predictions of one network, those with the highest loss first.

    Args:
        name: name of the network.
        rows: rows of the test split, int64 [K].
        images: the images as networks receive them, uint8 [K, C, H, W].
        labels, predicted: true and predicted classes, int64 [K].
        confidence: probabilities of the predicted classes, floating-point [K] in [0, 1].
        loss: cross-entropy in nats, floating-point [K].
    """

    name: str
    rows: Tensor
    images: Tensor
    labels: Tensor
    predicted: Tensor
    confidence: Tensor
    loss: Tensor


def worst_images(predictions: Predictions, name: str, dataset: ImageDataset, count: int) -> WorstImages:
    """Return at most `count` wrong predictions of the network `name` with the highest loss; equal ones in order.

    Args:
        predictions: predictions for the test images of `dataset`.
        name: name of the network in the predictions.
        dataset: the data set.
        count: the most images.

    Raises:
        ValueError: there is no network of this name.
    """
    if name not in predictions.names:
        raise ValueError(f"name: expected one of {', '.join(predictions.names)}, got {name}")
    m = predictions.names.index(name)
    wrong = (predictions.predicted[m] != predictions.labels).nonzero().flatten()
    rows = wrong[torch.argsort(predictions.loss[m, wrong], descending=True, stable=True)][:count]
    return WorstImages(
        name=name,
        rows=rows,
        images=centre(dataset.test.gather(rows), dataset.augmentation).cpu(),
        labels=predictions.labels[rows],
        predicted=predictions.predicted[m, rows],
        confidence=predictions.confidence[m, rows],
        loss=predictions.loss[m, rows],
    )
