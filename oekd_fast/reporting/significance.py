"""Differences in accuracy between two networks, with their standard errors and two-sided exact or t tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from oekd_fast.common.spread import binomial_error

LEVEL = 0.05  # p-values below are called significant


@dataclass(frozen=True)
class Difference:
    """A difference in accuracy.

    Args:
        points: the difference, in percentage points.
        error: its standard error, in percentage points; None if it cannot be estimated.
        p: two-sided p-value in [0, 1] of the hypothesis that there is no difference; None without a test.
    """

    points: float
    error: float | None
    p: float | None

    def __str__(self) -> str:
        return f"{self.points:+.2f}" if self.error is None else f"{self.points:+.2f} ± {self.error:.2f}"


def on_same_images(first: Tensor, second: Tensor) -> Difference:
    """Compare two networks by their predictions for the same N images, with McNemar's exact test.

    Only images that exactly one network classifies correctly count. Under the hypothesis each network is the correct
    one with probability 1/2. The standard error is that of the mean of the paired differences.

    Args:
        first, second: whether each prediction is correct, bool [N].

    Returns:
        The accuracy of `first` minus that of `second`.

    Raises:
        ValueError: there are no images, or the shapes differ.
    """
    from scipy.stats import binomtest

    if first.dim() != 1 or first.shape != second.shape or len(first) == 0:
        raise ValueError(
            "first and second: expected predictions for the same images, at least one, got "
            f"{list(first.shape)} and {list(second.shape)}"
        )
    images = len(first)
    gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
    share = (gained - lost) / images
    variance = (gained + lost) / images - share**2
    p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    return Difference(100 * share, 100 * math.sqrt(max(variance, 0.0) / images), float(p))


def on_other_images(first: float, second: float, images: int) -> Difference:
    """Compare two accuracies as if each network had test images of its own, with Fisher's exact test.

    For networks with the same test images, whose predictions mostly agree, this overestimates the error.

    Args:
        first, second: accuracies in percent.
        images: number of test images.

    Returns:
        `first` minus `second`.
    """
    from scipy.stats import fisher_exact

    correct = [round(accuracy / 100 * images) for accuracy in (first, second)]
    table = [[count, images - count] for count in correct]
    error = math.hypot(binomial_error(first, images), binomial_error(second, images))
    return Difference(first - second, error, min(float(fisher_exact(table).pvalue), 1.0))


def over_seeds(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compare accuracies of runs that differ in the seed only, with a paired t test.

    Args:
        first, second: accuracies in percent, one for each seed.

    Returns:
        The mean of `first` minus that of `second`. Its error and p-value are None for one seed. The p-value is None,
        too, if the difference is the same for all seeds but not 0, as the test needs a spread.
    """
    from scipy.stats import sem, ttest_rel

    differences = np.subtract(first, second)
    mean = float(differences.mean())
    if len(differences) == 1:
        return Difference(mean, None, None)
    if np.ptp(differences) == 0:
        return Difference(mean, 0.0, 1.0 if mean == 0 else None)
    return Difference(mean, float(sem(differences)), float(ttest_rel(first, second).pvalue))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values adjusted for the number of tests (Holm, Scandinavian Journal of Statistics 6, 1979).

    A set of tests rejects any true hypothesis with at most the probability `LEVEL` if the adjusted values are compared
    with it. None stands for a test that was not made; it stays None and does not count.
    """
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[index] = largest
    return adjusted
