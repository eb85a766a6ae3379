"""Budgets for which each student of a run, or their ensemble, is the one to use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple


class Range(NamedTuple):
    """The values from `low` on and below `high`, which is infinity without an upper end."""

    low: float
    high: float


def cost_ranges(
    costs: Sequence[float | None], accuracies: Sequence[float], parameters: Sequence[int]
) -> list[Range | None]:
    """Return the limits of a cost for which each candidate is chosen, as `oekd_fast.pick` chooses.

    With a limit, the most accurate candidate whose cost is at most the limit is chosen, and among equals the one with
    the fewest parameters.

    Args:
        costs: of each candidate; a candidate with None is left out.
        accuracies: validation accuracies, by which the choice is made.
        parameters: numbers of parameters.

    Returns:
        For each candidate the limits for which it is chosen; None if there are none.
    """
    ranges: list[Range | None] = [None] * len(costs)
    limits = sorted({cost for cost in costs if cost is not None})
    for low, high in pairwise([*limits, math.inf]):
        fitting = [i for i, cost in enumerate(costs) if cost is not None and cost <= low]
        chosen = min(fitting, key=lambda i: (-accuracies[i], parameters[i]))
        # A candidate that loses to a more accurate one cannot win with a larger limit, so its limits are one range.
        before = ranges[chosen]
        ranges[chosen] = Range(low if before is None else before.low, high)
    return ranges


def accuracy_ranges(accuracies: Sequence[float], parameters: Sequence[int]) -> list[Range | None]:
    """Return the least accuracies for which each candidate is chosen, as `oekd_fast.pick` chooses.

    With a least accuracy, the candidate with the fewest parameters among those that reach it is chosen.

    Returns:
        For each candidate the accuracies above `low` and up to `high`; None if there are none.
    """
    ranges: list[Range | None] = [None] * len(accuracies)
    reached = 0.0
    for i in sorted(range(len(accuracies)), key=lambda i: parameters[i]):
        if accuracies[i] > reached:
            ranges[i] = Range(reached, accuracies[i])
            reached = accuracies[i]
    return ranges
