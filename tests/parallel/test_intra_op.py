"""Division of threads among students, and their starting order."""

import functools
import itertools

import pytest
import torch

from oekd_fast.native import executor_class
from oekd_fast.parallel import threads
from oekd_fast.parallel.threads import StartingOrder, best_order, divide_threads, makespan

from ..conftest import needs_executor

RESNET = [1.0, 0.64, 0.36, 0.16, 0.04]  # cost is proportional to the square of the width


@pytest.mark.parametrize(
    "available, costs, expected",
    [
        (1, RESNET, (1, 1)),
        (2, RESNET, (2, 1)),
        (2, [1.0] * 5, (2, 1)),
        (2, [1.0, 0.01], (1, 2)),
        (3, [1.0] * 3, (3, 1)),
        (8, RESNET, (2, 4)),
        (16, RESNET, (2, 8)),
        (64, RESNET, (3, 21)),
        (8, [1.0], (1, 8)),
        (64, [1.0] * 5, (5, 12)),
        (2, [0.0, 0.0], (1, 2)),
    ],
)
def test_threads_are_divided_by_cost(available, costs, expected):
    assert divide_threads(available, costs) == expected


def test_the_best_order_has_the_least_makespan():
    costs = [0.53, 0.45, 0.36, 0.27, 0.17]
    order = best_order(costs, 2)
    assert makespan([costs[j] for j in order], 2) == pytest.approx(0.89)  # 0.97 if the largest starts first
    every = [makespan([costs[j] for j in tried], 2) for tried in itertools.permutations(range(5))]
    assert makespan([costs[j] for j in order], 2) == min(every)
    assert best_order([1.0] * 3, 2) == [0, 1, 2]
    assert best_order(range(40), 4) == list(range(40))[::-1]


def test_the_starting_order_is_learned_from_a_few_calls(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(threads.time, "perf_counter", lambda: clock[0])

    def branch(seconds, value):
        clock[0] += seconds
        return value

    starting = StartingOrder([3.0, 2.0, 1.0], workers=2)
    branches = [functools.partial(branch, seconds) for seconds in (1.0, 1.0, 5.0)]
    for call in range(4):  # the first is not counted
        assert starting.order == [0, 1, 2]
        assert [timed(call) for timed in starting.timed(branches)] == [call] * 3
        starting.learn()
    assert starting.order[0] == 2
    assert starting.timed(branches) is branches


@needs_executor
def test_the_native_order_must_name_every_student_once():
    executor = executor_class()(3, torch.device("cpu"), workers=1, threads=1, order=[2, 0, 1])
    executor.order = [1, 2, 0]
    assert executor.order == [1, 2, 0]
    for wrong in ([0, 1], [0, 1, 1], [0, 1, 3]):
        with pytest.raises(ValueError, match="order: expected each of the 3 students once"):
            executor.order = wrong
    assert executor.order == [1, 2, 0]
