"""Timing in turns, on a clock that the calls move."""

import random
from itertools import cycle

import pytest

from oekd_fast.latency.timing import CALLS, LEAST_TURNS, MOST_TURNS, SHORT, Timing, time_in_turns


class Bench:
    """Networks whose calls take given seconds, one after the other in a circle, and the clock that they move."""

    def __init__(self, *durations) -> None:
        self.now, self.order = 100.0, []
        self.calls = [self._call(i, cycle(of_network)) for i, of_network in enumerate(durations)]

    def _call(self, i, durations):
        def call() -> float:
            seconds = next(durations)
            self.now += seconds
            self.order.append(i)
            return seconds

        return call

    def time(self, limit=1e9, target=1e9, costs=None, **options):
        costs = [1.0] * len(self.calls) if costs is None else costs
        return time_in_turns(self.calls, costs, limit, target, clock=lambda: self.now, **options)


def timing(*turns) -> Timing:
    return Timing(tuple((turn,) if isinstance(turn, float) else turn for turn in turns))


def test_median_and_p95_are_those_of_all_calls():
    of_hundred = Timing(tuple((float(i), float(i + 50)) for i in range(1, 51)))
    assert of_hundred.median == 50.5 and of_hundred.p95 == 95.0
    assert timing(3.0, 1.0, 2.0).p95 == 3.0 and timing(3.0, 1.0, 2.0).median == 2.0


def test_networks_take_turns_and_the_first_call_of_a_turn_is_not_timed():
    bench = Bench([0.002], [0.001])
    timings = bench.time()
    assert [len(t.turns) for t in timings] == [MOST_TURNS] * 2
    assert all(turn == (0.002,) * (CALLS - 1) for turn in timings[0].turns)
    warm_up = [0, 0, 1, 1]
    assert bench.order == warm_up + ([0] * CALLS + [1] * CALLS) * MOST_TURNS


def test_a_long_call_is_timed_once_a_turn():
    first, second = Bench([10 * SHORT], [0.001]).time()
    assert first.turns == ((10 * SHORT,),) * MOST_TURNS
    assert len(second.turns[0]) == CALLS - 1


def test_the_slow_first_call_of_a_runtime_does_not_count():
    bench = Bench([0.001])
    (quick,) = bench.calls
    slow = iter([5.0])

    def call():
        duration = next(slow, None)
        if duration is None:
            return quick()
        bench.now += duration
        return duration

    bench.calls = [call]
    (found,) = bench.time()
    assert found.p95 == 0.001


def test_no_turn_starts_after_the_target_and_none_ends_after_the_limit():
    bench = Bench([1.0])
    (found,) = bench.time(target=8.5)
    assert len(found.turns) == 7  # after one call of warm-up
    (found,) = bench.time(limit=8.5)
    assert len(found.turns) == 7
    (found,) = bench.time(target=0.0)
    assert len(found.turns) == LEAST_TURNS


@pytest.mark.parametrize("limit", [0.0, 0.5, 3.5, 3.99])
def test_a_limit_that_is_too_short_gives_nothing_and_is_kept(limit):
    bench = Bench([1.0])
    assert bench.time(limit=limit) is None
    assert bench.now - 100.0 <= 1.0
    assert len(Bench([1.0]).time(limit=4.0)[0].turns) == LEAST_TURNS


def test_a_call_that_would_be_too_long_is_not_begun():
    bench = Bench([64.0], [1.0])
    assert bench.time(limit=60.0, costs=[64.0, 1.0]) is None
    assert bench.order == [1]


def test_calls_that_become_slow_end_at_the_limit():
    bench = Bench([0.3, 10.0, 10.0, 10.0])
    assert bench.time(limit=12.0) is None
    assert len(bench.order) == 3


def test_a_request_to_stop_ends_it_before_the_next_call():
    bench = Bench([1.0], [1.0])
    assert bench.time(stopping=lambda: len(bench.order) == 5) is None
    assert len(bench.order) == 5
    bench = Bench([1.0])
    (found,) = bench.time(stopping=lambda: len(bench.order) >= 8)
    assert len(found.turns) == 7
    assert Bench([1.0]).time(stopping=lambda: True) is None


def test_faster_needs_all_of_few_turns():
    assert timing(1.0, 1.0, 1.0).is_faster_than(timing(2.0, 2.0, 2.0))
    assert not timing(1.0, 1.0, 3.0).is_faster_than(timing(2.0, 2.0, 2.0))
    assert not timing(2.0, 2.0, 2.0).is_faster_than(timing(2.0, 2.0, 2.0))
    assert not timing(3.0, 3.0, 3.0).is_faster_than(timing(2.0, 2.0, 2.0))


@pytest.mark.parametrize(("wins", "faster"), [(18, True), (17, False), (13, False), (0, False), (25, True)])
def test_faster_is_a_sign_test(wins, faster):
    """At least 18 of 25 fair coins show heads with a probability of 2.2 %, at least 17 with 5.4 %."""
    turns = [1.0] * wins + [3.0] * (25 - wins)
    assert timing(*turns).is_faster_than(timing(*[2.0] * 25)) is faster


def test_a_drift_of_the_machine_does_not_hide_a_difference():
    drift = [1.0 + 0.2 * i for i in range(20)]
    slow, fast = timing(*drift), timing(*(0.95 * seconds for seconds in drift))
    assert fast.is_faster_than(slow) and not slow.is_faster_than(fast)


def test_networks_of_one_speed_are_rarely_found_to_differ():
    generator = random.Random(0)

    def samples():
        return timing(*(generator.lognormvariate(0.0, 0.3) for _ in range(25)))

    found = sum(samples().is_faster_than(samples()) for _ in range(1000))
    assert found < 60


def test_a_turn_counts_by_its_median():
    outliers = timing(*[(1.0, 1.0, 90.0)] * 10)
    assert outliers.is_faster_than(timing(*[(2.0, 2.0, 2.0)] * 10))
    assert outliers.p95 == 90.0
