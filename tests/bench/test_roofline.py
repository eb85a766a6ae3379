"""Lower bounds of the loss and of the training step on a GPU, against figures computed by hand."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.model import roofline
from bench.model.roofline import (
    CARDS,
    ITEMSIZES,
    SIZES,
    Cost,
    Floor,
    Problem,
    StepFloor,
    differentiable,
    floor,
    step_floor,
    step_lines,
    value_and_grad,
)
from bench.model.step_cost import MODELS, OPTIMIZER_PASSES, Convolution, Operations, StepCost, step_costs, walk
from bench.step.problem import StepProblem
from oekd_fast import build_ensemble

ROOT = Path(__file__).resolve().parents[2]
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
def test_more_work_takes_more_time(cost, card):
    for problem in PROBLEMS:
        least = floor(cost(problem), card).seconds
        for name in ("students", "rows", "classes", "itemsize"):
            larger = replace(problem, **{name: 2 * getattr(problem, name)})
            assert floor(cost(larger), card).seconds > least, (problem, name)
        assert floor(cost(replace(problem, temperature=2.5)), card).seconds >= least
    assert floor(value_and_grad(problem), card).seconds < floor(differentiable(problem), card).seconds


def test_the_larger_part_binds_and_launches_are_added():
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


def test_the_table_says_that_it_is_a_model(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.model.roofline", "--card", "A100"])
    roofline.main()
    lines = capsys.readouterr().out.splitlines()
    assert "not measurements" in lines[0]
    assert "datasheet" in lines[1] and "assumed" in lines[1]
    assert len(lines) == 4 + len(SIZES) * len(ITEMSIZES)


# -- the training step


@pytest.fixture(scope="module")
def walked():
    """ResNet-20 x 2, 10 classes, two images of 8x8: the whole family, and the largest student alone."""
    problem = StepProblem(num_students=2, classes=10, batch_size=2, image_size=8)
    return problem, walk(problem), walk(problem, members=(0,))


def test_convolutions_and_sums_of_the_largest_student_by_hand(walked):
    _, _, alone = walked
    # The stem, 18 in blocks, two projections, the classifier.
    assert len(alone.convolutions) == 1 + 18 + 2 + 1
    assert alone.convolutions[0] == Convolution(2 * 3 * 64, 2 * 16 * 64, 16 * 3 * 9, first=True)
    assert [c.first for c in alone.convolutions[1:]] == [False] * 21
    assert alone.convolutions[-1] == Convolution(2 * 64, 2 * 10, 64 * 10 + 10, first=False)
    assert alone.sums == 3 * 2 * (16 * 64 + 32 * 16 + 64 * 4)
    assert alone.maps == 0


def test_maps_and_parameters_of_the_family(walked):
    _, family, _ = walked
    # The pseudo teacher's maps are read once; those of student 2 are read, and their gradients written.
    assert family.maps == 2 * (16 * 64 + 32 * 16 + 64 * 4) + 2 * 2 * (8 * 64 + 16 * 16 + 32 * 4)
    assert family.parameters == sum(p.numel() for p in build_ensemble("resnet20", 2, 10).parameters())


def test_arithmetic_of_a_step_is_three_times_the_forwards(walked):
    _, _, alone = walked
    stem = 2 * 2 * 64 * 16 * 27
    stages = 2 * 2 * (64 * 9 * (6 * 16 * 16) + 16 * 9 * (16 * 32 + 5 * 32 * 32) + 4 * 9 * (32 * 64 + 5 * 64 * 64))
    projections, classifier = 2 * 2 * (16 * 16 * 32 + 4 * 32 * 64), 2 * 2 * 64 * 10
    # The images need no gradient.
    assert alone.flops == 2 * stem + 3 * (stages + projections + classifier)


@pytest.mark.slow
def test_counts_of_bytes_by_hand(walked):
    problem, family, _ = walked
    costs = step_costs(problem)
    shared = 4 * OPTIMIZER_PASSES * family.parameters + 5 * (2 * 3 * 64) + 2 * 2 * 2 * 10 * 4
    outputs = sum(c.outputs for c in family.convolutions)
    assert costs["kept"].bytes == shared + 2 * 4 * outputs
    passes = sum(3 * (c.inputs + c.outputs + c.weights) for c in family.convolutions) - 2 * 3 * 64
    assert costs["fused"].bytes == shared + 4 * (passes + 2 * family.sums + family.maps)
    assert costs["unfused"].bytes == shared + family.operation_bytes
    assert costs["kept"].bytes < costs["fused"].bytes < costs["unfused"].bytes


def test_launches_of_a_step(walked):
    problem, family, alone = walked
    costs = step_costs(problem)
    assert costs["fused"].chain == 3 * len(alone.convolutions) - 1 + 3
    assert costs["unfused"].chain == alone.operations > costs["fused"].chain
    for cost in costs.values():
        assert cost.chain < cost.launches < 3 * cost.chain


def test_operations_are_counted_with_their_bytes():
    x, a, b = (torch.empty(shape, device="meta") for shape in ((2, 3, 4, 4), (5, 6), (6, 7)))
    with Operations() as counted:
        torch.nn.functional.batch_norm(x, None, None, training=True)
        torch.mm(a, b).t()
    # BatchNorm reads its map twice and writes it, and two values a channel; a transposition is a view.
    assert counted.count == 2 and counted.flops == 2 * 5 * 6 * 7
    assert counted.bytes == 4 * (3 * 96 + 2 * 3 + 30 + 42 + 35)


def test_a_step_takes_as_long_as_its_longest_part():
    card = replace(CARDS["H200"], copy_bandwidth=10.0, matrix_flops={"bf16": 5.0}, launch_latency=1.0)
    by_memory = step_floor(StepCost(bytes=100, flops=20, launches=50, chain=2), card, "bf16")
    assert by_memory == StepFloor(memory=10.0, arithmetic=4.0, launches=2.0)
    assert (by_memory.seconds, by_memory.binds) == (10.0, "memory")
    assert step_floor(StepCost(10, 200, 1, 1), card, "bf16").binds == "arithmetic"
    assert step_floor(StepCost(1, 1, 9, 9), card, "bf16").seconds == 9.0


@pytest.mark.slow
def test_the_table_of_the_step():
    lines = list(step_lines("resnet20", 8, 2))
    assert "not measurements" in lines[0] and len(lines) == 2 + len(CARDS) * (1 + 2 * len(MODELS))
