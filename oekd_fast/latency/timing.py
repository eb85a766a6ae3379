"""Time calls of several networks in turns, so that a change in the speed of the machine affects all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

MOST_TURNS, LEAST_TURNS = 25, 3
# Calls of a turn, the first of which is not timed: it finds the caches filled by another network. A call that is longer
# than SHORT seconds is timed at once, since the caches matter little to it.
SHORT, CALLS = 0.02, 4
_LEVEL = 0.05


@dataclass(frozen=True)
class Timing:
    """Durations of the timed calls of one network, in seconds, by turn."""

    turns: tuple[tuple[float, ...], ...]

    @property
    def durations(self) -> list[float]:
        """All durations, ascending."""
        return sorted(duration for turn in self.turns for duration in turn)

    @property
    def median(self) -> float:
        """Median of all durations."""
        return median(self.durations)

    @property
    def p95(self) -> float:
        """95th percentile by the nearest rank: the least duration that at least 95 % of the calls do not exceed."""
        durations = self.durations
        return durations[math.ceil(0.95 * len(durations)) - 1]

    def is_faster_than(self, other: Timing) -> bool:
        """Return whether this network is faster beyond the noise.

        The medians of both are compared turn by turn, by a one-sided sign test at a level of 5 %. With fewer than five
        turns, all of them have to agree.
        """
        pairs = list(zip(self.turns, other.turns, strict=True))
        wins = sum(median(own) < median(others) for own, others in pairs)
        chance = sum(math.comb(len(pairs), k) for k in range(wins, len(pairs) + 1)) / 2 ** len(pairs)
        return wins == len(pairs) or chance <= _LEVEL


def time_in_turns(
    calls: Sequence[Callable[[], float]],
    costs: Sequence[float],
    limit: float,
    target: float,
    *,
    stopping: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing] | None:
    """Time each of `calls` in several turns.

    Args:
        calls: functions that run a network once and return the duration in seconds.
        costs: estimated costs of the calls, in any unit. A call is not begun if the duration of a cheaper one and these
            costs say that it would end after the limit.
        limit: seconds that may pass in all.
        target: seconds after which there is no further turn, once there are `LEAST_TURNS`.
        stopping: returns whether to give up; asked before each call.
        clock: returns the time in seconds.

    Returns:
        One timing for each call, all with the same number of turns; None if the limit is too short for `LEAST_TURNS`
        turns, or if `stopping` returned True.
    """
    start = clock()

    def must_end(expected: float = 0.0) -> bool:
        return stopping() or clock() - start + expected > limit

    single = [0.0] * len(calls)
    expected = 0.0
    order = sorted(range(len(calls)), key=lambda i: costs[i])
    for i, following in zip(order, [*order[1:], None], strict=True):
        if must_end(expected):
            return None
        single[i] = _warm_up(calls[i])
        expected = 0.0 if following is None else single[i] * costs[following] / costs[i]
    repeats = [CALLS if duration < SHORT else 1 for duration in single]
    turn_seconds = sum(duration * count for duration, count in zip(single, repeats, strict=True))
    if must_end(LEAST_TURNS * turn_seconds):
        return None
    turns: list[list[tuple[float, ...]]] = [[] for _ in calls]
    for turn in range(MOST_TURNS):
        if turn >= LEAST_TURNS and (must_end(turn_seconds) or clock() - start + turn_seconds > target):
            break
        for call, count, done in zip(calls, repeats, turns, strict=True):
            if must_end() and turn < LEAST_TURNS:
                return None
            durations = [call() for _ in range(count)]
            done.append(tuple(durations[1:] if count > 1 else durations))
    return [Timing(tuple(done)) for done in turns]


def _warm_up(call: Callable[[], float]) -> float:
    """Call twice and return the shorter duration; once, if the first call is much longer than `SHORT`."""
    first = call()  # includes what the runtime does at its first call
    return first if first > 10 * SHORT else min(first, call())
