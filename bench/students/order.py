"""Whether smaller students are faster, from their timings."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def order(timings: Sequence[dict]) -> str:
    """Say whether each student is faster than the next larger one: "yes", "no", or "close".

    Args:
        timings: median and quartiles (``median``, ``lower``, ``upper``) of each student, from the largest one on.

    Returns:
        "no" if a median is not below that of the next larger student, "close" if the quartiles of two neighbours
        overlap, and "yes" otherwise.
    """
    pairs = list(pairwise(timings))
    if any(smaller["median"] >= larger["median"] for larger, smaller in pairs):
        return "no"
    return "close" if any(smaller["upper"] >= larger["lower"] for larger, smaller in pairs) else "yes"
