"""How torch's intra-op threads are shared among students that run side by side on the CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import permutations
from typing import Any, NamedTuple

import torch

# What each further intra-op thread costs: two threads make a small network 1.6 times as fast, eight 2.9 times.
_OVERHEAD = 0.25
_TRIED = 6  # students of which all orders are tried
_CALLS_TIMED = 3


class Division(NamedTuple):
    """So many workers, each with so many intra-op threads."""

    workers: int
    threads: int


def divide_threads(available: int, costs: Sequence[float]) -> Division:
    """The division of `available` threads that should finish first, given the cost of each student (any unit)."""

    def seconds(workers: int) -> float:
        return makespan(sorted(costs, reverse=True), workers) / _speed_up(available // workers)

    workers = min(range(1, min(len(costs), available) + 1), key=seconds)
    return Division(workers, available // workers)


def makespan(costs: Sequence[float], workers: int) -> float:
    """When the last of `costs` is done if each is begun, in this order, by the worker that is free first."""
    loads = [0.0] * workers
    for cost in costs:
        loads[loads.index(min(loads))] += cost
    return max(loads)


def _speed_up(threads: int) -> float:
    return threads / (1 + _OVERHEAD * (threads - 1))


def largest_first(costs: Sequence[float]) -> list[int]:
    """The students by falling cost; equals in their own order."""
    return sorted(range(len(costs)), key=lambda j: -costs[j])


def best_order(costs: Sequence[float], workers: int) -> list[int]:
    """The order of starting that is done first; where there are many students, the largest first."""
    largest = largest_first(costs)
    if len(costs) > _TRIED:
        return largest
    # Of equals the first, which begins with the largest.
    return list(min(permutations(largest), key=lambda order: makespan([costs[j] for j in order], workers)))


class StartingOrder:
    """Who starts first in calls of one kind: by given costs, then by what a few calls took.

    It changes when a call is done, never what it computes.
    """

    def __init__(self, costs: Sequence[float], workers: int) -> None:
        self.order = largest_first(costs)
        self._workers = workers
        self._seconds: list[list[float]] = []

    def timed(self, branches: Sequence[Callable[[Any], Any]]) -> Sequence[Callable[[Any], Any]]:
        """The branches to call this time: watched while there is something to learn. `learn` comes after the call."""
        if len(self._seconds) > _CALLS_TIMED:
            return branches
        self._seconds.append([0.0] * len(branches))
        return [partial(self._watch, self._seconds[-1], j, branch) for j, branch in enumerate(branches)]

    def learn(self) -> None:
        if len(self._seconds) == _CALLS_TIMED + 1:  # the first call allocates, and may run all in turn
            fastest = [min(calls) for calls in zip(*self._seconds[1:], strict=True)]
            self.order = best_order(fastest, self._workers)
            self._seconds.append([])

    @staticmethod
    def _watch(seconds: list[float], j: int, branch: Callable[[Any], Any], value: Any) -> Any:
        start = time.perf_counter()
        try:
            return branch(value)
        finally:
            seconds[j] = time.perf_counter() - start


@contextmanager
def one_thread() -> Iterator[None]:
    """While it lasts, the calling thread has one intra-op thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
