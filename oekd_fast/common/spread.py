"""Mean and sample standard deviation of the results of repeated runs, and the error of a share of test images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple


class Spread(NamedTuple):
    """A mean and a sample standard deviation, which is None for a single value."""

    mean: float
    deviation: float | None

    def __format__(self, form: str) -> str:
        """Format as "mean ± deviation", or as the mean of a single value; `form` formats the mean (default ".2f")."""
        mean = f"{self.mean:{form or '.2f'}}"
        return mean if self.deviation is None else f"{mean} ± {self.deviation:.2f}"

    def __str__(self) -> str:
        return format(self, "")


def spread(values: Sequence[float]) -> Spread:
    """Return the spread of `values`, one number per run."""
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None)


def binomial_error(accuracy: float, images: int) -> float:
    """Return the standard error of an accuracy from the choice of the test images, sqrt(p (1 - p) / N), in points.

    Args:
        accuracy: in percent.
        images: number of test images, N.
    """
    return math.sqrt(accuracy * (100 - accuracy) / images)
