"""The loss between flow matrices."""

import pytest
import torch
from torch import nn

from oekd_fast.losses.comparison import AutogradComparison, ComparedStudent
from oekd_fast.losses.flow import flow_loss, flow_matrices

from ..support.comparisons import compared_students, teacher_maps


def test_a_matrix_is_the_mean_of_products_over_positions():
    x = torch.tensor([[[[1.0, 2.0]], [[0.0, 3.0]]]])  # two channels of 1 x 2 positions
    y = torch.tensor([[[[4.0, 5.0]], [[1.0, -1.0]], [[0.0, 2.0]]]])
    (matrix,) = flow_matrices([x, y])
    assert matrix.tolist() == [[[7.0, -0.5, 2.0], [7.5, -1.5, 3.0]]]


def test_the_larger_map_is_max_pooled():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    y = torch.ones(1, 1, 2, 2)
    (first, second) = flow_matrices([x, y, x])
    assert first.item() == second.item() == (5 + 7 + 13 + 15) / 4


@pytest.mark.parametrize(("sizes", "windows"), [((7, 4), 4), ((5, 3), 3), ((9, 2), 2), ((7, 5), 5)])
def test_sizes_that_do_not_divide_are_pooled_to_the_smaller_one(sizes, windows):
    x, y = torch.rand(2, 3, sizes[0], sizes[0]), torch.ones(2, 1, sizes[1], sizes[1])
    (matrix,) = flow_matrices([x, y])
    assert matrix.shape == (2, 3, 1)
    pooled = matrix * windows**2
    assert (pooled <= windows**2).all() and (pooled >= x.amax((2, 3))[..., None]).all()


def plain(students, teacher):
    """The formula of the paper, position by position."""

    def matrix(x, y):
        x = nn.functional.adaptive_max_pool2d(x, y.shape[2:])
        height, width = y.shape[2:]
        g = x.new_zeros(len(x), x.shape[1], y.shape[1])
        for s in range(height):
            for t in range(width):
                g = g + x[:, :, s, t, None] * y[:, None, :, s, t] / (height * width)
        return g

    loss = teacher[0].new_zeros(())
    for student in students:
        adapted = [adapter(x) for adapter, x in zip(student.adapters, student.maps, strict=True)]
        for b in range(len(teacher) - 1):
            gap = matrix(teacher[b], teacher[b + 1]) - matrix(adapted[b], adapted[b + 1])
            for image in gap:
                loss = loss + image.pow(2).sum() / len(gap)
    return loss


def test_value_and_gradients_are_those_of_the_paper():
    students, teacher = compared_students(torch.float64), teacher_maps(torch.float64)
    expected = plain(students, teacher)
    expected.backward()
    goal = [[x.grad for x in s.maps] for s in students]
    weights = [a.weight.grad.clone() for s in students for a in s.adapters]
    for student in students:
        for adapter in student.adapters:
            adapter.zero_grad()
    scale = torch.tensor([0.25], dtype=torch.float32)
    loss, grads = AutogradComparison(flow_loss).value_and_grad(students, teacher, scale)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-13, atol=0)
    for own, theirs in zip(grads, goal, strict=True):
        torch.testing.assert_close(own, [0.25 * grad for grad in theirs], rtol=1e-11, atol=1e-13)
    found = [a.weight.grad for s in students for a in s.adapters]
    torch.testing.assert_close(found, [0.25 * grad for grad in weights], rtol=1e-11, atol=1e-13)
    again, _ = AutogradComparison(flow_loss).value_and_grad(students, teacher, scale)
    assert torch.equal(again, loss)
    torch.testing.assert_close(found, [0.5 * grad for grad in weights], rtol=1e-11, atol=1e-13)  # added up


def test_half_precision_maps_are_compared_in_float32():
    half = compared_students(torch.bfloat16)
    whole = [ComparedStudent([x.detach().float() for x in s.maps], s.adapters) for s in half]
    teacher = teacher_maps(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        loss, grads = AutogradComparison(flow_loss).value_and_grad(half, teacher, torch.ones(()))
    expected = flow_loss(whole, [x.float() for x in teacher])
    assert loss.dtype == torch.float32 and torch.equal(loss, expected.detach())
    assert all(g.dtype == torch.bfloat16 for of_student in grads for g in of_student)
