"""Numbers of several runs as one: mean and sample standard deviation."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev
from typing import NamedTuple


class Spread(NamedTuple):
    """A mean with the sample standard deviation, which is 0 for one run."""

    mean: float
    deviation: float
    runs: int

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if self.runs == 1 else f"{self.mean:.2f} ± {self.deviation:.2f}"


def spread(values: Sequence[float]) -> Spread:
    """Of one number a run."""
    return Spread(mean(values), stdev(values) if len(values) > 1 else 0.0, len(values))
