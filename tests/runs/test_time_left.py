"""Estimates of the time that a run still needs: exact where the phases take the time that the estimate assumes."""

import pytest

from oekd_fast.runs.time_left import PhaseWork, TimeLeft

from ..support.clock import Clock

FAMILY = PhaseWork("ensemble", epochs=4, students=2, flops=300.0)
FIRST, SECOND = PhaseWork("baseline_1", 4, 1, 200.0), PhaseWork("baseline_2", 4, 1, 100.0)
STEPS = 10


@pytest.fixture
def clock() -> Clock:
    return Clock()


def train(left: TimeLeft, clock: Clock, epochs: int = 1, step: float = 1.0, evaluation: float = 2.0) -> None:
    """Train epochs of ten steps, of 12 s by default."""
    for _ in range(epochs):
        for number in range(STEPS):
            clock.wait(step)
            left.step((number + 1) / STEPS)
        clock.wait(evaluation)
        left.epoch()


def phase(left: TimeLeft, clock: Clock, work: PhaseWork, **times: float) -> None:
    left.begin(work.name, 0)
    train(left, clock, work.epochs, **times)
    left.end()


def test_nothing_is_said_before_a_second_of_steps_after_the_first_was_measured(clock):
    left = TimeLeft([FAMILY], clock=clock)
    left.begin("ensemble", 0)
    clock.wait(60.0)  # the first step compiles
    left.step(0.1)
    assert left.seconds() is None
    clock.wait(0.9)
    left.step(0.2)
    assert left.seconds() is None
    clock.wait(0.9)
    left.step(0.3)
    assert left.seconds() == pytest.approx(0.9 * 10 * (4 - 0.3))


def test_before_the_first_evaluation_its_duration_is_that_of_the_plan(clock):
    left = TimeLeft([PhaseWork("ensemble", 4, 2, 300.0, evaluation=0.2)], clock=clock)
    left.begin("ensemble", 0)
    for share in (0.1, 0.2, 0.3):
        clock.wait(1.0)
        left.step(share)
    assert left.seconds() == pytest.approx(10 * (3 * 1.2 + 0.7 + 0.2))


def test_a_finished_epoch_counts_with_its_evaluation(clock):
    left = TimeLeft([FAMILY], clock=clock)
    left.begin("ensemble", 0)
    train(left, clock)
    assert left.seconds() == pytest.approx(3 * 12.0)
    left.step(0.5)
    assert left.seconds() == pytest.approx(2 * 12.0 + 5.0 + 2.0)
    left.step(1.0)
    assert left.seconds() == pytest.approx(2 * 12.0 + 2.0)


def test_an_epoch_takes_the_median_of_the_last_five(clock):
    left = TimeLeft([PhaseWork("ensemble", 20, 2, 1.0)], clock=clock)
    left.begin("ensemble", 0)
    train(left, clock, step=100.0)
    train(left, clock, 2)
    assert left.seconds() == pytest.approx(17 * 12.0)
    train(left, clock, 3, step=2.0)
    assert left.seconds() == pytest.approx(14 * 22.0)


def test_phases_that_were_not_measured_follow_by_their_operations(clock):
    left = TimeLeft([FAMILY, FIRST, SECOND], afterwards=20.0, clock=clock)
    left.begin("ensemble", 0)
    train(left, clock)
    assert left.seconds() == pytest.approx(3 * 12.0 + 4 * 8.0 + 4 * 4.0 + 20.0)


def test_two_measured_phases_tell_what_students_and_operations_take(clock):
    left = TimeLeft([FAMILY, FIRST, SECOND], clock=clock)
    phase(left, clock, FAMILY)  # 12 s an epoch: 3 s a student, and 1 s for 50 operations
    phase(left, clock, FIRST, step=0.5)  # 7 s
    left.begin("baseline_2", 0)
    assert left.seconds() == pytest.approx(4 * 5.0)


def test_further_phases_are_fitted_with_the_smallest_relative_errors(clock):
    third = PhaseWork("baseline_3", 4, 1, 50.0)
    left = TimeLeft([FAMILY, FIRST, SECOND, third], clock=clock)
    phase(left, clock, FAMILY)
    phase(left, clock, FIRST, step=0.5)
    phase(left, clock, SECOND, step=0.3)  # 5 s, as expected
    left.begin("baseline_3", 0)
    assert left.seconds() == pytest.approx(4 * 4.0)
    train(left, clock, step=0.3)  # 5 s
    left.end()
    assert left.seconds() == 0.0


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (2.0, (2 / 12 + 1 / 2) / ((2 / 12) ** 2 + (1 / 2) ** 2)),  # operations would take less than no time
        (30.0, 100 * (300 / 12 + 200 / 30) / ((300 / 12) ** 2 + (200 / 30) ** 2)),  # students would
    ],
)
def test_neither_takes_less_than_no_time(clock, first, expected):
    left = TimeLeft([FAMILY, FIRST, SECOND], clock=clock)
    phase(left, clock, FAMILY)
    phase(left, clock, FIRST, step=first / STEPS, evaluation=0.0)
    left.begin("baseline_2", 0)
    assert left.seconds() == pytest.approx(4 * expected)


def test_phases_of_the_same_kind_take_about_the_same_time(clock):
    works = [PhaseWork(name, 4, 1, 1e9) for name in ("generation_1", "generation_2", "ensemble")]
    left = TimeLeft(works, clock=clock)
    phase(left, clock, works[0])
    left.begin("generation_2", 0)
    assert left.seconds() == pytest.approx(8 * 12.0)
    train(left, clock, 4, step=0.9)
    left.end()
    left.begin("ensemble", 0)
    assert 4 * 11.0 < left.seconds() < 4 * 12.0


def test_a_phase_that_stops_early_needs_no_more_time(clock):
    left = TimeLeft([FAMILY, FIRST], clock=clock)
    left.begin("ensemble", 0)
    train(left, clock)
    left.end()
    left.begin("baseline_1", 0)
    assert left.seconds() == pytest.approx(4 * 8.0)


def test_a_resumed_run_measures_again(clock):
    left = TimeLeft([FAMILY, FIRST], clock=clock)
    left.begin("ensemble", 4)  # done by an earlier process
    left.end()
    left.begin("baseline_1", 1.5)
    assert left.seconds() is None
    for share in (0.6, 0.7, 0.8, 0.9, 1.0):
        clock.wait(1.0)
        left.step(share)
    clock.wait(2.0)
    left.epoch()
    assert left.seconds() is None  # half an epoch is not an epoch
    train(left, clock)
    assert left.seconds() == pytest.approx(12.0)


def test_the_evaluation_after_the_last_epoch_is_included(clock):
    left = TimeLeft([PhaseWork("ensemble", 4, 2, 1.0, closing=0.5)], clock=clock)
    left.begin("ensemble", 0)
    train(left, clock, 4)
    assert left.seconds() == pytest.approx(6.0)
    left.end()
    assert left.seconds() == 0.0


RARE = PhaseWork("ensemble", 5, 2, 300.0, evaluation=0.3, evaluate_every=2)  # evaluated after 2, 4 and 5


def train_rarely(left: TimeLeft, clock: Clock, epochs: range) -> None:
    """Train epochs of 10 s, with 1 s for each checkpoint and 2 s more for each evaluation."""
    for epoch in epochs:
        train(left, clock, evaluation=3.0 if epoch in RARE.evaluated else 1.0)


def test_epochs_with_and_without_an_evaluation_are_measured_apart(clock):
    left = TimeLeft([RARE], clock=clock)
    left.begin("ensemble", 0)
    train_rarely(left, clock, range(1, 2))
    assert left.seconds() == pytest.approx(4 * 10.0 + 1.0 + 3 * (0.3 * 10.0 + 1.0))  # none was evaluated yet
    train_rarely(left, clock, range(2, 3))
    assert left.seconds() == pytest.approx(3 * 10.0 + 1.0 + 2 * 3.0)
    left.step(0.5)
    assert left.seconds() == pytest.approx(2.5 * 10.0 + 1.0 + 2 * 3.0)
    train_rarely(left, clock, range(3, 6))
    assert left.seconds() == 0.0


def test_a_resumed_run_counts_its_evaluations_from_the_first_epoch(clock):
    left = TimeLeft([RARE, PhaseWork("baseline_1", 5, 1, 150.0, evaluate_every=2)], clock=clock)
    left.begin("ensemble", 3)
    train_rarely(left, clock, range(4, 5))
    # An epoch without an evaluation gives the time of its steps only.
    mean = (5 * 10.0 + 3 * 3.0) / 5
    assert left.seconds() == pytest.approx(10.0 + 3.0 + 5 * mean / 2)


def test_epochs_that_cost_less_are_expected_to_take_less(clock):
    work = PhaseWork("ensemble", 4, 2, 300.0, evaluation=0.2, costs=(0.25, 0.25, 0.5, 1.0))
    left = TimeLeft([work], clock=clock)
    left.begin("ensemble", 0)
    for share in (0.1, 0.2, 0.3):
        clock.wait(1.0)
        left.step(share)
    # A step takes 1 s, an epoch with the cost 1 would take 40 s and an evaluation 8 s.
    assert left.seconds() == pytest.approx(7 + 10 + 20 + 40 + 4 * 8)
    left.begin("ensemble", 0)
    train(left, clock)
    assert left.seconds() == pytest.approx(10 + 20 + 40 + 3 * 2)
    train(left, clock)
    train(left, clock, step=2.0)
    for share in (0.1, 0.2):
        clock.wait(4.0)
        left.step(share)
    assert left.seconds() == pytest.approx(0.8 * 40 + 2)
