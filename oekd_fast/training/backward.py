"""Losses of a family on a batch and the gradients of all its parameters: students side by side, the base last."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from oekd_fast.family.ensemble import EnsembleOutput, StudentEnsemble
from oekd_fast.losses.feature_kd import feature_kd_loss, feature_kd_value_and_grad
from oekd_fast.losses.reference import EnsembleKDOutput
from oekd_fast.parallel.executor import Executor
from oekd_fast.training.distillation import Sources, family_loss, family_value_and_grad


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
    sources: what the students learn from beside labels and each other.
    base_learns_from_all: False: the base learns from student 0 alone (and from the gate).
    """

    logits: dict[str, Any]
    feature: Tensor | None = None
    scale: Tensor | None = None
    sources: Sources = Sources()
    base_learns_from_all: bool = True

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
    gate = gate_input = None
    with autocast:
        shared = ensemble.base(images)
        inputs = _inputs(shared, len(ensemble.branches), weights.base_learns_from_all)
        logits, features = zip(*executor.forward(ensemble.branches, inputs), strict=True)
        if ensemble.gate is not None:
            gate_input = shared.detach().requires_grad_(shared.requires_grad)
            gate = ensemble.gate(gate_input)
    statistics, logits_grads, gate_grad = family_value_and_grad(
        logits, labels, weights.logits, weights.sources, gate, weights.scale
    )
    students = [_Student([z], [grad]) for z, grad in zip(logits, logits_grads, strict=True)]
    teacher = None
    if weights.feature is not None:
        teacher, taught, maps = _taught(students, features, weights.sources.hints)
        adapters = zip(*ensemble.adapters, strict=True)  # by student
        for student, own, of_student in zip(taught, maps, adapters, strict=True):
            student.add_maps(own, of_student)
        del maps, taught
    del logits, logits_grads, features

    backward = _backward_on_streams if images.is_cuda else _backward_in_threads
    feature = backward(students, teacher, weights, executor)
    if gate is not None:
        gate.backward(gate_grad)
        inputs.append(gate_input)
    if shared.requires_grad:
        shared.backward(_sum([x.grad for x in inputs if x.requires_grad]))
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
        shared = ensemble.base(images)
        inputs = [shared] + [shared if weights.base_learns_from_all else shared.detach()] * (len(ensemble.branches) - 1)
        logits, features = zip(*executor.forward(ensemble.branches, inputs), strict=True)
        gate = None if ensemble.gate is None else ensemble.gate(shared)
    statistics = family_loss(logits, labels, weights.logits, weights.sources, gate)
    total, feature = statistics.loss, None
    if weights.feature is not None:
        teacher, _, maps = _taught(list(logits), features, weights.sources.hints)
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


def forward_side_by_side(
    ensemble: StudentEnsemble, images: Tensor, executor: Executor
) -> tuple[EnsembleOutput, Tensor | None]:
    """What `ensemble(images)` returns, branches run by `executor`, in one autograd graph; and the gate's weights."""
    shared = ensemble.base(images)
    logits, features = zip(*executor.forward(ensemble.branches, [shared] * len(ensemble.branches)), strict=True)
    return EnsembleOutput(logits, features), None if ensemble.gate is None else ensemble.gate(shared)


def _inputs(shared: Tensor, count: int, learns_from_all: bool) -> list[Tensor]:
    """The base's map for each student, as a leaf of its own, with a gradient where the base learns from it."""
    wanted = [shared.requires_grad] + [shared.requires_grad and learns_from_all] * (count - 1)
    return [shared.detach().requires_grad_(each) for each in wanted]


def _taught(
    students: list[Any], features: Sequence[Sequence[Tensor]], hints: tuple[Tensor, ...] | None
) -> tuple[Sequence[Tensor], list[Any], Sequence[Sequence[Tensor]]]:
    """The maps to compare with, the students whose maps are compared, and those maps."""
    if hints is not None:
        return hints, students, features
    return features[0], students[1:], features[1:]


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
    def taught(self) -> bool:
        """Whether its maps are compared."""
        return bool(self._adapters)

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


def _backward_on_streams(
    students: list[_Student], teacher: Sequence[Tensor] | None, weights: Weights, executor: Executor
) -> Tensor | None:
    """The intermediate loss of all students, in few launches, then all their backward passes."""
    taught = [student for student in students if student.taught]
    loss = _feature_gradients(taught, teacher, weights) if taught else None
    executor.backward([student.roots for student in students], [student.grads for student in students])
    return loss


def _backward_in_threads(
    students: list[_Student], teacher: Sequence[Tensor] | None, weights: Weights, executor: Executor
) -> Tensor | None:
    """Each student's intermediate loss right before its backward, so that few gradients of maps stand at a time."""

    def run(j: int) -> Tensor | None:
        loss = _feature_gradients(students[j : j + 1], teacher, weights) if students[j].taught else None
        students[j].backward()
        return loss

    losses = [loss for loss in executor.forward([run] * len(students), range(len(students))) if loss is not None]
    return torch.stack(losses).sum() if losses else None


def _sum(grads: Sequence[Tensor]) -> Tensor:
    first, *others = grads
    for grad in others:
        first = first.add_(grad)
    return first
