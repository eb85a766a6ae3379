"""Mean and sample standard deviation of the results of repeated runs."""

from __future__ import annotations

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
