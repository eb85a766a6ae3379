"""The model of the loss on a GPU, against figures worked out by hand."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.roofline import CARDS, ITEMSIZES, SIZES, Cost, Floor, Problem, differentiable, floor, value_and_grad

ROOT = Path(__file__).resolve().parent.parent
PROBLEMS = [Problem(5, rows, classes, itemsize) for rows, classes in SIZES for itemsize in ITEMSIZES.values()]
COSTS = (value_and_grad, differentiable)


@pytest.mark.parametrize("classes, milliseconds", [(32000, 1.09), (128256, 4.38), (262144, 8.95)])
def test_one_read_and_one_write_at_the_datasheets_bandwidth(classes, milliseconds):
    card = replace(CARDS["H200"], copy_bandwidth=4.8e12)
    at_best = floor(value_and_grad(Problem(5, 8192, classes, 2)), card)
    assert at_best.memory * 1e3 == pytest.approx(milliseconds, abs=0.006)


def test_bytes_of_a_small_problem_by_hand():
    problem = Problem(students=2, rows=3, classes=4, itemsize=2)
    # Logits 48 and gradients 48; 3 labels; loss, 2 CE, 2 KD and the ensemble's CE in fp32; 3 counts in int64.
    assert value_and_grad(problem).bytes == 48 + 48 + 24 + 24 + 24
    # Logits and labels twice; of each of 3 rows 8 fp32 out and in again; one upstream gradient.
    assert differentiable(problem).bytes == 2 * 48 + 48 + 2 * 24 + 24 + 24 + 2 * 3 * 8 * 4 + 4


@pytest.mark.parametrize(
    "classes, temperature, in_one_launch, in_two",
    [
        (4, 1.0, 3, 6),
        (4, 4.0, 3, 6),
        (4, 2.5, 6, 6 + 5),
        (4, 5.0, 6, 6 + 5),
        (32000, 2.0, 6, 6),
        (32000, 2.5, 6 + 5, 6 + 5),
    ],
)
def test_exponentials_a_class_and_row(classes, temperature, in_one_launch, in_two):
    problem = Problem(2, 3, classes, 2, temperature)
    assert value_and_grad(problem).exponentials == in_one_launch * 3 * classes
    assert differentiable(problem).exponentials == in_two * 3 * classes


def test_launches():
    assert [cost(PROBLEMS[0]).launches for cost in COSTS] == [1, 2]


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_more_work_takes_no_less_time(cost, card):
    for problem in PROBLEMS:
        least = floor(cost(problem), card).seconds
        for name in ("students", "rows", "classes", "itemsize"):
            larger = replace(problem, **{name: 2 * getattr(problem, name)})
            assert floor(cost(larger), card).seconds > least, (problem, name)
        assert floor(cost(replace(problem, temperature=2.5)), card).seconds >= least
    assert floor(value_and_grad(problem), card).seconds < floor(differentiable(problem), card).seconds


def test_the_larger_part_binds_and_launches_come_on_top():
    card = replace(CARDS["A100"], copy_bandwidth=10.0, exp_per_second=5.0, launch_latency=1.0)
    by_memory = floor(Cost(bytes=100, exponentials=20, launches=2), card)
    assert by_memory == Floor(memory=10.0, exponentials=4.0, launches=2.0)
    assert (by_memory.seconds, by_memory.binds) == (12.0, "memory")
    by_exponentials = floor(Cost(bytes=10, exponentials=20, launches=1), card)
    assert (by_exponentials.seconds, by_exponentials.binds) == (5.0, "exponentials")
    assert floor(Cost(bytes=1, exponentials=1, launches=1), card).binds == "launches"


def test_tiny_batches_are_bound_by_the_launch_and_large_ones_by_memory():
    h200 = CARDS["H200"]
    assert floor(value_and_grad(Problem(5, 128, 100, 4)), h200).binds == "launches"
    assert floor(value_and_grad(Problem(5, 8192, 32000, 2)), h200).binds == "memory"


def test_the_table_says_that_it_is_a_model():
    command = [sys.executable, "-m", "bench.roofline", "--card", "A100"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "not measurements" in lines[0]
    assert "datasheet" in lines[1] and "assumed" in lines[1]
    assert len(lines) == 4 + len(SIZES) * len(ITEMSIZES)
