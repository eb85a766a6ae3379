"""Division of torch's intra-op threads among students that run side by side on the CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import permutations
from typing import Any, NamedTuple

import torch

# Cost of each further intra-op thread: a small network is 1.6 times as fast with two threads, 2.9 times with eight.
_OVERHEAD = 0.25
_MOST_PERMUTED = 6  # students; the order of more is not searched exhaustively
_CALLS_TIMED = 3


class Division(NamedTuple):
    """Number of workers, and of intra-op threads of each worker."""

    workers: int
    threads: int


def divide_threads(available: int, costs: Sequence[float]) -> Division:
    """Return the division of `available` threads with the least estimated time.

    Args:
        available: number of intra-op threads.
        costs: estimated time of each student, in any unit.
    """

    def seconds(workers: int) -> float:
        return makespan(sorted(costs, reverse=True), workers) / _speed_up(available // workers)

    workers = min(range(1, min(len(costs), available) + 1), key=seconds)
    return Division(workers, available // workers)


def makespan(costs: Sequence[float], workers: int) -> float:
    """Return when the last task ends if the worker that is free first starts the next task, in the order of `costs`."""
    loads = [0.0] * workers
    for cost in costs:
        loads[loads.index(min(loads))] += cost
    return max(loads)


def _speed_up(threads: int) -> float:
    return threads / (1 + _OVERHEAD * (threads - 1))


def largest_first(costs: Sequence[float]) -> list[int]:
    """Return student indices by decreasing cost; students of equal cost keep their order."""
    return sorted(range(len(costs)), key=lambda j: -costs[j])


def best_order(costs: Sequence[float], workers: int) -> list[int]:
    """Return the starting order with the least makespan; for more than six students, the largest first."""
    largest = largest_first(costs)
    if len(costs) > _MOST_PERMUTED:
        return largest
    # `min` returns the first of equal orders, and the first permutation starts with the largest student.
    return list(min(permutations(largest), key=lambda order: makespan([costs[j] for j in order], workers)))


class StartingOrder:
    """Starting order of the students in calls of one kind: by the given costs at first, then by measured times.

    The order changes how long a call takes, never its result.
    """

    def __init__(self, costs: Sequence[float], workers: int) -> None:
        self.order = largest_first(costs)
        self._workers = workers
        self._seconds: list[list[float]] = []

    def timed(self, branches: Sequence[Callable[[Any], Any]]) -> Sequence[Callable[[Any], Any]]:
        """Return the branches to call, wrapped in timers during the first calls. `learn` must follow the call."""
        if len(self._seconds) > _CALLS_TIMED:
            return branches
        self._seconds.append([0.0] * len(branches))
        return [partial(self._time, self._seconds[-1], j, branch) for j, branch in enumerate(branches)]

    def learn(self) -> None:
        """Set the order from the measured times, once enough calls have been timed."""
        if len(self._seconds) == _CALLS_TIMED + 1:
            # The first call is left out: it allocates memory, and may run all students sequentially.
            fastest = [min(calls) for calls in zip(*self._seconds[1:], strict=True)]
            self.order = best_order(fastest, self._workers)
            self._seconds.append([])

    @staticmethod
    def _time(seconds: list[float], j: int, branch: Callable[[Any], Any], value: Any) -> Any:
        start = time.perf_counter()
        try:
            return branch(value)
        finally:
            seconds[j] = time.perf_counter() - start


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one intra-op thread in the calling thread while the context is active."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
