"""Numbers of several runs as one: mean and sample standard deviation."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple


class Spread(NamedTuple):
    """A mean with the sample standard deviation, which is None for one value."""

    mean: float
    deviation: float | None

    def __format__(self, form: str) -> str:
        """``mean ± deviation``, the mean as `form` says (".2f" if it is empty); of one value the mean alone."""
        mean = f"{self.mean:{form or '.2f'}}"
        return mean if self.deviation is None else f"{mean} ± {self.deviation:.2f}"

    def __str__(self) -> str:
        return format(self, "")


def spread(values: Sequence[float]) -> Spread:
    """Of one number a run."""
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None)
