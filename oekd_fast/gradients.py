"""Losses of a family on a batch and the gradients of all its parameters: students side by side, the base last."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from oekd_fast.ensemble import EnsembleOutput, StudentEnsemble
from oekd_fast.executor import Executor
from oekd_fast.feature_ops import feature_kd_loss, feature_kd_value_and_grad
from oekd_fast.ops import ensemble_kd_loss, ensemble_kd_value_and_grad
from oekd_fast.reference import EnsembleKDOutput


@dataclass(frozen=True)
class FamilyLosses:
    """Of one batch; scalars stay on the device.

    statistics: of the logits.
    feature: the intermediate loss, not weighted; None where there are no adapters.
    total: all terms weighted.
    """

    statistics: EnsembleKDOutput
    feature: Tensor | None
    total: Tensor


@dataclass(frozen=True)
class Weights:
    """What a step's losses depend on beside the batch: scalars on the device.

    logits: keyword arguments of `ensemble_kd_loss`.
    feature: weight of the intermediate loss; None leaves it out.
    scale: multiplies all gradients and no loss; None is 1.
    """

    logits: dict[str, Any]
    feature: Tensor | None = None
    scale: Tensor | None = None

    @property
    def feature_scale(self) -> Tensor:
        """Of the intermediate loss' gradients."""
        return self.feature if self.scale is None else self.feature * self.scale


def backward_side_by_side(
    ensemble: StudentEnsemble,
    images: Tensor,
    labels: Tensor,
    weights: Weights,
    executor: Executor,
    autocast: AbstractContextManager,
) -> FamilyLosses:
    """Add every parameter's gradient to its `.grad`; S backward passes of their own, then the base's.

    Since every student's target is detached, or its gradient taken by the loss itself, no student's backward needs
    another's. The gradients at the base's output are added up in the students' order.

    Args:
        images: float [B, C_in, H, W].
        labels: int64 [B].
        autocast: entered around the networks.
    """
    with autocast:
        shared = ensemble.base(images)
        inputs = [shared.detach().requires_grad_(shared.requires_grad) for _ in ensemble.branches]
        logits, features = zip(*executor.forward(ensemble.branches, inputs), strict=True)
    statistics, logits_grads = ensemble_kd_value_and_grad(logits, labels, grad_scale=weights.scale, **weights.logits)
    students = [_Student([z], [grad]) for z, grad in zip(logits, logits_grads, strict=True)]
    teacher = None
    if weights.feature is not None:
        teacher, *maps = features
        adapters = list(zip(*ensemble.adapters, strict=True))  # by student
        for student, own, of_student in zip(students[1:], maps, adapters, strict=True):
            student.add_maps(own, of_student)
        del maps
    del logits, logits_grads, features

    if images.is_cuda:
        feature = None if teacher is None else _feature_gradients(students[1:], teacher, weights)
        executor.backward([student.roots for student in students], [student.grads for student in students])
    else:
        feature = _backward_in_threads(students, teacher, weights, executor)
    if shared.requires_grad:
        shared.backward(_sum([x.grad for x in inputs]))
    total = statistics.loss if feature is None else statistics.loss + weights.feature * feature
    return FamilyLosses(statistics, feature, total)


def backward_as_one(
    ensemble: StudentEnsemble,
    images: Tensor,
    labels: Tensor,
    weights: Weights,
    executor: Executor,
    autocast: AbstractContextManager,
) -> FamilyLosses:
    """As `backward_side_by_side`, but as one autograd graph: forward side by side, backward as autograd orders it."""
    with autocast:
        output = forward_side_by_side(ensemble, images, executor)
    statistics = ensemble_kd_loss(output.logits, labels, **weights.logits)
    total, feature = statistics.loss, None
    if weights.feature is not None:
        teacher, *maps = output.features
        adapters = ensemble.adapters
        with autocast:
            feature = feature_kd_loss(
                list(zip(*maps, strict=True)),
                teacher,
                [[adapter.weight for adapter in block] for block in adapters],
                [[adapter.bias for adapter in block] for block in adapters],
            )
        total = total + weights.feature * feature
    total.backward(weights.scale)
    detached = statistics._replace(loss=statistics.loss.detach())
    return FamilyLosses(detached, None if feature is None else feature.detach(), total.detach())


def forward_side_by_side(ensemble: StudentEnsemble, images: Tensor, executor: Executor) -> EnsembleOutput:
    """What `ensemble(images)` returns, the branches run by `executor`, in one autograd graph."""
    shared = ensemble.base(images)
    logits, features = zip(*executor.forward(ensemble.branches, [shared] * len(ensemble.branches)), strict=True)
    return EnsembleOutput(logits, features)


class _Student:
    """Where the backward pass of one student begins: its logits, and its maps where they are compared."""

    def __init__(self, roots: list[Tensor], grads: list[Tensor]) -> None:
        self.roots, self.grads = roots, grads
        self._adapters: Sequence[nn.Conv2d] = ()

    def add_maps(self, maps: Sequence[Tensor], adapters: Sequence[nn.Conv2d]) -> None:
        """One of each a block; their gradients come with `add_gradients`."""
        self.roots += maps
        self._adapters = adapters

    @property
    def compared(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Map, weight and bias of the adapter, one a block."""
        return [(x, a.weight, a.bias) for x, a in zip(self.roots[1:], self._adapters, strict=True)]

    def add_gradients(self, maps: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
        """One of each a block."""
        self.grads += maps
        for adapter, weight, bias in zip(self._adapters, weights, biases, strict=True):
            for parameter, grad in ((adapter.weight, weight), (adapter.bias, bias)):
                parameter.grad = grad if parameter.grad is None else parameter.grad + grad

    def backward(self) -> None:
        """Run it, and let go of what it began from."""
        roots, grads = self.roots, self.grads
        self.roots, self.grads = [], []
        torch.autograd.backward(roots, grads)


def _feature_gradients(students: Sequence[_Student], teacher: Sequence[Tensor], weights: Weights) -> Tensor:
    """The intermediate loss of `students`, who are given its gradients. By blocks: all students of one at once."""
    blocks = zip(*(student.compared for student in students), strict=True)
    maps, of_weights, of_biases = zip(*(zip(*block, strict=True) for block in blocks), strict=True)
    loss, *grads = feature_kd_value_and_grad(maps, teacher, of_weights, of_biases, grad_scale=weights.feature_scale)
    for student, of_student in zip(
        students, zip(*(zip(*part, strict=True) for part in grads), strict=True), strict=True
    ):
        student.add_gradients(*of_student)
    return loss


def _backward_in_threads(
    students: list[_Student], teacher: Sequence[Tensor] | None, weights: Weights, executor: Executor
) -> Tensor | None:
    """Each student's intermediate loss right before its backward, so that few gradients of maps stand at a time."""

    def run(j: int) -> Tensor | None:
        loss = _feature_gradients(students[j : j + 1], teacher, weights) if j > 0 and teacher is not None else None
        students[j].backward()
        return loss

    _, *losses = executor.forward([run] * len(students), range(len(students)))
    return torch.stack(losses).sum() if losses and teacher is not None else None


def _sum(grads: Sequence[Tensor]) -> Tensor:
    first, *others = grads
    for grad in others:
        first = first.add_(grad)
    return first
