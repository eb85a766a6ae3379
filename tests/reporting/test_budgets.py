"""Budgets of students: exact ranges, and the same choice as the command that picks a student."""

import math
import random

from oekd_fast.choice.budget import Budget
from oekd_fast.choice.candidates import Candidate
from oekd_fast.choice.choose import choose
from oekd_fast.reporting.budgets import accuracy_ranges, cost_ranges

PARAMETERS = [400, 300, 200, 100]


def test_each_candidate_is_chosen_from_its_own_cost_to_that_of_the_next_better_one():
    ranges = cost_ranges(PARAMETERS, [90.0, 80.0, 85.0, 70.0], PARAMETERS)
    assert ranges == [(400, math.inf), None, (200, 400), (100, 200)]


def test_equal_accuracies_go_to_the_fewest_parameters():
    assert cost_ranges(PARAMETERS, [90.0] * 4, PARAMETERS) == [None, None, None, (100, math.inf)]
    # The smallest one is the slowest: up to its latency, another one is chosen.
    assert cost_ranges([1.0, 2.0, 3.0, 4.0], [90.0] * 4, PARAMETERS) == [(1, 2), (2, 3), (3, 4), (4, math.inf)]


def test_candidates_of_the_same_cost():
    assert cost_ranges([2.0, 2.0], [80.0, 90.0], [2, 1]) == [None, (2, math.inf)]


def test_a_candidate_without_a_cost_is_left_out():
    assert cost_ranges([None, 3.0], [99.0, 50.0], [2, 1]) == [None, (3, math.inf)]
    assert cost_ranges([None], [99.0], [1]) == [None]


def test_ranges_of_accuracies():
    assert accuracy_ranges([90.0, 80.0, 85.0, 70.0], PARAMETERS) == [(85, 90), None, (70, 85), (0, 70)]
    assert accuracy_ranges([0.0], [1]) == [None]


def test_ranges_agree_with_the_command():
    draw = random.Random(0)
    for _ in range(100):
        count = draw.randint(1, 6)
        parameters = [draw.randint(1, 6) for _ in range(count)]
        accuracies = [float(draw.randint(1, 6)) for _ in range(count)]
        candidates = [Candidate(i + 1, parameters[i], None, accuracies[i], 0.0) for i in range(count)]
        costs, least = cost_ranges(parameters, accuracies, parameters), accuracy_ranges(accuracies, parameters)
        for limit in range(min(parameters), 8):
            chosen, _ = choose(candidates, Budget(max_parameters=limit))
            assert [i for i, r in enumerate(costs) if r and r.low <= limit < r.high] == [chosen.index - 1]
        for limit in (float(value) for value in range(1, int(max(accuracies)) + 1)):
            chosen, _ = choose(candidates, Budget(min_accuracy=limit))
            assert [i for i, r in enumerate(least) if r and r.low < limit <= r.high] == [chosen.index - 1]
