"""The loss between pooled maps, with critics."""

from dataclasses import replace

import pytest
import torch

from oekd_fast.family.helpers import Critic, build_helpers
from oekd_fast.losses.adversarial import adversarial_loss, reverse_gradient
from oekd_fast.losses.comparison import AutogradComparison

from ..support.comparisons import TEACHER, compared_students, teacher_maps

WEIGHT = 0.7


def students_with_critics(dtype):
    torch.manual_seed(8)
    critics = [Critic(channels).to(dtype) for channels, _ in TEACHER]
    return [replace(student, helpers=critics) for student in compared_students(dtype, count=1)]


def value_and_grad(students, teacher, weight):
    comparison = AutogradComparison(lambda *given: adversarial_loss(*given, critic_weight=weight))
    loss, (map_grads,) = comparison.value_and_grad(students, teacher, torch.ones(()))
    return loss, map_grads, [p.grad for critic in students[0].helpers for p in critic.parameters()]


def test_a_gradient_is_reversed_and_a_value_is_not():
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    y = reverse_gradient(x)
    assert torch.equal(y, x)
    (y * torch.tensor([3.0, 4.0])).sum().backward()
    assert x.grad.tolist() == [-3.0, -4.0]


def test_critics_minimise_and_students_maximise_the_same_loss():
    teacher, students = teacher_maps(torch.float64), students_with_critics(torch.float64)
    without, alone, _ = value_and_grad(students, teacher, 0.0)
    (student,) = students_with_critics(torch.float64)
    loss, map_grads, critic_grads = value_and_grad([student], teacher, WEIGHT)
    told_apart = teacher[0].new_zeros(())
    for x, adapter, critic, f in zip(student.maps, student.adapters, student.helpers, teacher, strict=True):
        d_t, d_s = critic(f.mean((2, 3))).sigmoid(), critic(adapter(x).mean((2, 3))).sigmoid()
        told_apart = told_apart - d_t.log().mean() - (1 - d_s).log().mean()
    torch.testing.assert_close(loss - without, WEIGHT * told_apart.detach(), rtol=1e-12, atol=0)
    critics = [p for critic in student.helpers for p in critic.parameters()]
    goals = torch.autograd.grad(WEIGHT * told_apart, [*student.maps, *critics])
    for own, plain, goal in zip(map_grads, alone, goals, strict=False):
        torch.testing.assert_close(own - plain, -goal, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(critic_grads, list(goals[len(map_grads) :]), rtol=1e-10, atol=1e-14)


def test_equal_pooled_maps_have_no_similarity_loss():
    (student,) = students_with_critics(torch.float64)
    with torch.no_grad():
        teacher = [adapter(x) for adapter, x in zip(student.adapters, student.maps, strict=True)]
        assert adversarial_loss([student], teacher, 0.0).item() == pytest.approx(0.0, abs=1e-15)


def test_large_scores_stay_finite():
    (student,) = students_with_critics(torch.float32)
    teacher = [1e4 * x for x in teacher_maps(torch.float32)]
    loss, map_grads, critic_grads = value_and_grad([student], teacher, 1.0)
    assert loss.isfinite() and all(grad.isfinite().all() for grad in (*map_grads, *critic_grads))


def test_unknown_helpers_raise():
    with pytest.raises(ValueError, match="^helpers: expected none, critics or inlets, got 'judges'$"):
        build_helpers("judges", [])
