"""Calibration of predictions: expected calibration error (Guo, Pleiss, Sun, Weinberger, ICML 2017, eq. 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 15
LEAST_IMAGES = 20  # fewer images say little about the accuracy of a bin


@dataclass(frozen=True)
class Bin:
    """Images with low < confidence <= high.

    Args:
        low, high: limits of the confidence, in [0, 1].
        images: number of images.
        correct: number of those that are classified correctly.
        confidence: mean confidence of the images.
    """

    low: float
    high: float
    images: int
    correct: int
    confidence: float

    @property
    def accuracy(self) -> float:
        """Share of the images that are classified correctly."""
        return self.correct / self.images

    def __add__(self, above: Bin) -> Bin:
        """Return the bin of the images of this bin and of one above it."""
        images = self.images + above.images
        confidence = (self.images * self.confidence + above.images * above.confidence) / images
        return Bin(self.low, above.high, images, self.correct + above.correct, confidence)


@dataclass(frozen=True)
class Calibration:
    """Statistics of M bins of equal width; bin m holds images with (m - 1) / M < confidence <= m / M.

    Args:
        share: share of all images in each bin, float64 [M]; sums to 1.
        confidence, accuracy: means over the images of each bin, float64 [M] in [0, 1]; NaN for empty bins.
        images: number of all images.
    """

    share: Tensor
    confidence: Tensor
    accuracy: Tensor
    images: int

    def merged(self, least: int = LEAST_IMAGES) -> list[Bin]:
        """Return the bins that hold images, in ascending order, each merged with those below it until it holds `least`.

        A last bin with fewer images is merged with the one above it, so that only a single bin can hold fewer.
        """
        width, bins = 1 / len(self.share), []
        for m in reversed(self.share.nonzero().flatten().tolist()):
            images = round(self.share[m].item() * self.images)
            correct = round(self.accuracy[m].item() * images)
            one = Bin(m * width, (m + 1) * width, images, correct, self.confidence[m].item())
            if bins and bins[0].images < least:
                bins[0] = one + bins[0]
            else:
                bins.insert(0, one)
        if len(bins) > 1 and bins[0].images < least:
            bins[:2] = [bins[0] + bins[1]]
        return bins

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

    return Calibration(counts / len(confidence), mean(confidence), mean(correct), len(confidence))
