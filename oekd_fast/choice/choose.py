"""The rules of the choice: the most accurate candidate that fits, or the smallest that is accurate enough."""

from __future__ import annotations

from collections.abc import Sequence

from oekd_fast.choice.budget import Budget
from oekd_fast.choice.candidates import Candidate


class NothingFitsError(ValueError):
    """No candidate keeps the budget; the message says which comes closest."""


def choose(candidates: Sequence[Candidate], budget: Budget) -> tuple[Candidate, str]:
    """Return the candidate that the budget selects, and why, in one sentence.

    With `min_accuracy`, that is the candidate with the fewest parameters among those that fit. Otherwise it is the one
    with the highest validation accuracy, and among equals the one with the fewest parameters. The test accuracy is not
    used, so that it stays an estimate for the chosen network that the choice does not raise.

    Raises:
        NothingFitsError: no candidate fits.
    """
    fitting = [candidate for candidate in candidates if not budget.excess(candidate)]
    if not fitting:
        raise NothingFitsError(_closest(candidates, budget))
    if len(fitting) == 1:
        return fitting[0], "the only one that fits"
    smallest = min(fitting, key=lambda candidate: candidate.parameters)
    if budget.min_accuracy is not None:
        return smallest, f"the fewest parameters ({smallest.parameters:,}) of the {len(fitting)} that fit"
    best = max(candidate.validation_accuracy for candidate in fitting)
    equal = [candidate for candidate in fitting if candidate.validation_accuracy == best]
    chosen = min(equal, key=lambda candidate: candidate.parameters)
    reason = f"the highest validation accuracy ({best:.2f} %) of the {len(fitting)} that fit"
    if len(equal) > 1:
        reason += f", and the fewest parameters of the {len(equal)} that have it"
    return chosen, reason


def _closest(candidates: Sequence[Candidate], budget: Budget) -> str:
    """Return which candidate misses the limits by the smallest factor; the largest factor of a candidate counts."""
    closest = min(candidates, key=lambda candidate: max(budget.excess(candidate).values()))
    return f"budget: nothing fits; the closest is {closest.name} ({budget.missed(closest)})"
