"""Calibration of predictions: expected calibration error (Guo, Pleiss, Sun, Weinberger, ICML 2017, eq. 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 15


@dataclass(frozen=True)
class Calibration:
    """Statistics of M bins of equal width; bin m holds images with (m - 1) / M < confidence <= m / M.

    Args:
        share: share of all images in each bin, float64 [M]; sums to 1.
        confidence, accuracy: means over the images of each bin, float64 [M] in [0, 1]; NaN for empty bins.
    """

    share: Tensor
    confidence: Tensor
    accuracy: Tensor

    @property
    def ece(self) -> float:
        """Expected calibration error in percent: the mean over images of |accuracy - confidence| of their bins."""
        gaps = (self.accuracy - self.confidence).abs().nan_to_num()
        return 100 * (self.share * gaps).sum().item()


def calibrate(confidence: Tensor, correct: Tensor, bins: int = BINS) -> Calibration:
    """Compare the confidence of N predictions with their accuracy.

    Args:
        confidence: probability of the predicted class, floating-point [N].
        correct: whether the prediction is correct, bool [N].
        bins: number of bins of equal width, M.

    Raises:
        ValueError: there are no predictions, the shapes differ, or a confidence is not in [0, 1].
    """
    if confidence.dim() != 1 or confidence.shape != correct.shape or len(confidence) == 0:
        raise ValueError(
            "confidence and correct: expected one number each for at least one prediction, got "
            f"{list(confidence.shape)} and {list(correct.shape)}"
        )
    confidence = confidence.double()
    if not ((confidence >= 0) & (confidence <= 1)).all():
        low, high = confidence.aminmax()
        raise ValueError(f"confidence: expected probabilities in [0, 1], got {low:g} to {high:g}")
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    counts = torch.bincount(index, minlength=bins).double()

    def mean(values: Tensor) -> Tensor:
        return torch.bincount(index, weights=values.double(), minlength=bins) / counts

    return Calibration(counts / len(confidence), mean(confidence), mean(correct))
