"""Losses of a family on one batch and the gradients of all its parameters: students side by side, then the base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from oekd_fast.distributed.buckets import GradientBuckets
from oekd_fast.family.ensemble import EnsembleOutput, StudentEnsemble
from oekd_fast.layers.direct_conv import shared_layout
from oekd_fast.layers.fast_module import FastModule
from oekd_fast.losses.comparison import ComparedStudent, Comparison, MapComparison
from oekd_fast.losses.reference import EnsembleKDOutput
from oekd_fast.models.in_place import InPlaceError, change_count, changes_its_input
from oekd_fast.parallel.executor import Executor
from oekd_fast.training.distillation import TeacherSignals, family_loss, family_value_and_grad
from oekd_fast.training.teacher_inputs import maps_from_teacher_inputs


@dataclass(frozen=True)
class FamilyLosses:
    """Losses of one batch, detached, on the device.

    statistics: what `ensemble_kd_loss` returns for the logits.
    feature: scalar intermediate loss before its weight is applied; None without adapters.
    total: scalar, the weighted sum of all terms.
    """

    statistics: EnsembleKDOutput
    feature: Tensor | None
    total: Tensor


@dataclass(frozen=True)
class StepTerms:
    """Loss terms of one training step and their weights. Tensors are scalars on the device unless noted.

    loss_options: keyword arguments of `ensemble_kd_loss`.
    feature_weight: weight of the intermediate loss; None leaves that loss out.
    grad_scale: multiplies all gradients but no loss; None means 1.
    signals: teacher signals for the batch.
    base_learns_from_all: False trains the base on student 0 alone, and on the gate if there is one.
    base_learns_from_features: False keeps the gradients of the intermediate loss out of the base.
    base_learns_from_mean: True divides the sum of all students' gradients at the base's output by their number.
    comparison: the intermediate loss.
    teacher_inputs: whether that loss compares maps of blocks that are fed with the teacher's maps.
    """

    loss_options: dict[str, Any]
    feature_weight: Tensor | None = None
    grad_scale: Tensor | None = None
    signals: TeacherSignals = TeacherSignals()
    base_learns_from_all: bool = True
    base_learns_from_features: bool = True
    base_learns_from_mean: bool = False
    comparison: Comparison = MapComparison()
    teacher_inputs: bool = False

    @property
    def feature_grad_scale(self) -> Tensor:
        """Multiplies the gradients of the intermediate loss."""
        return self.feature_weight if self.grad_scale is None else self.feature_weight * self.grad_scale


Backward = Callable[
    [StudentEnsemble, Tensor, Tensor, StepTerms, Executor, AbstractContextManager, GradientBuckets],
    FamilyLosses,
]


def backward_side_by_side(
    ensemble: StudentEnsemble,
    images: Tensor,
    target: Tensor,
    terms: StepTerms,
    executor: Executor,
    forward: AbstractContextManager,
    buckets: GradientBuckets,
) -> FamilyLosses:
    """Add every parameter's gradient to its `.grad` by S separate backward passes of the students, then the base's.

    The passes are independent of each other, because each student's target is detached or the loss itself computes the
    gradient through it. The gradients at the base's output are summed in the order of the students.

    Args:
        images: float [B, C_in, H, W].
        target: class indices, int64 [B], or probabilities, float32 [B, C].
        forward: context of the networks' forward passes.
        buckets: told of each student whose gradients are complete, and of the base last.
    """
    gate = gate_input = None
    with forward:
        shared = run_base(ensemble.base, images)
        scale_base_gradient(shared, len(ensemble.branches), terms)
        inputs = branch_inputs(shared, len(ensemble.branches), terms.base_learns_from_all)
        logits, features = run_branches(ensemble.members, ensemble.branches, inputs, executor)
        if ensemble.gate is not None:
            gate_input = shared.detach().requires_grad_(shared.requires_grad)
            gate = ensemble.gate(gate_input)
    statistics, logits_grads, gate_grad = family_value_and_grad(
        logits, target, terms.loss_options, terms.signals, gate, terms.grad_scale
    )
    students = [StudentBackward(z, grad) for z, grad in zip(logits, logits_grads, strict=True)]
    targets: Sequence[Tensor] = ()
    if terms.feature_weight is not None:
        targets, first = _feature_targets(features, terms.signals, ensemble.adapters)
        if terms.teacher_inputs:
            features = fed_features(ensemble, range(len(features)), first, features, targets, executor, forward)
        for i, student in enumerate(students[first:]):
            student.compare(compared_student(ensemble, i, features[first + i]))
            if not terms.base_learns_from_features:
                student.keep_features_from(inputs[first + i])
    del logits, logits_grads, features  # each student's backward frees its own

    backward = _backward_on_streams if images.is_cuda else backward_in_threads
    feature = backward(students, targets, terms, executor, buckets)
    if gate is not None:
        gate.backward(gate_grad)
        inputs.append(gate_input)
    if shared.requires_grad:
        shared.backward(sum_in_order([x.grad for x in inputs if x.requires_grad]))
    buckets.base_done()
    total = statistics.loss if feature is None else statistics.loss + terms.feature_weight * feature
    return FamilyLosses(statistics, feature, total)


def backward_as_one(
    ensemble: StudentEnsemble,
    images: Tensor,
    target: Tensor,
    terms: StepTerms,
    executor: Executor,
    forward: AbstractContextManager,
    buckets: GradientBuckets,
) -> FamilyLosses:
    """Do the same as `backward_side_by_side` with one autograd graph, whose backward runs in autograd's order.

    The forward passes of the students still run side by side.
    """
    with forward:
        shared = whole = run_base(ensemble.base, images)
        scale_base_gradient(shared, len(ensemble.branches), terms)
        apart = shared.requires_grad and terms.feature_weight is not None and not terms.base_learns_from_features
        if apart:
            whole = shared.detach().requires_grad_()
        inputs = [whole] + [whole if terms.base_learns_from_all else whole.detach()] * (len(ensemble.branches) - 1)
        logits, features = run_branches(ensemble.members, ensemble.branches, inputs, executor)
        gate = None if ensemble.gate is None else ensemble.gate(whole)
    statistics = family_loss(logits, target, terms.loss_options, terms.signals, gate)
    total, feature = statistics.loss, None
    if terms.feature_weight is not None:
        targets, first = _feature_targets(features, terms.signals, ensemble.adapters)
        if terms.teacher_inputs:
            features = fed_features(ensemble, range(len(features)), first, features, targets, executor, forward)
        students = [compared_student(ensemble, i, maps) for i, maps in enumerate(features[first:])]
        with forward:
            feature = terms.comparison.loss(students, targets)
        total = total + terms.feature_weight * feature
    of_logits = torch.autograd.grad(statistics.loss, whole, terms.grad_scale, retain_graph=True) if apart else ()
    total.backward(terms.grad_scale)
    if apart:
        shared.backward(*of_logits)
    buckets.all_done()
    detached = statistics._replace(loss=statistics.loss.detach())
    return FamilyLosses(detached, None if feature is None else feature.detach(), total.detach())


def forward_side_by_side(
    ensemble: StudentEnsemble, images: Tensor, executor: Executor
) -> tuple[EnsembleOutput, Tensor | None]:
    """Return `ensemble(images)`, computed by `executor` in one autograd graph, and the gate's weights [B, S]."""
    shared = run_base(ensemble.base, images)
    logits, features = run_branches(ensemble.members, ensemble.branches, [shared] * len(ensemble.branches), executor)
    return EnsembleOutput(logits, features), None if ensemble.gate is None else ensemble.gate(shared)


def run_base(base: nn.Module, images: Tensor) -> Tensor:
    """Return ``base(images)``, in the layout in which the students together read it fastest."""
    shared = base(images)
    return shared_layout(shared) if isinstance(base, FastModule) and base.direct else shared


def scale_base_gradient(shared: Tensor, students: int, terms: StepTerms) -> None:
    """Have the gradient at the base's output `shared` divided by the number of students, if the terms ask for it."""
    if terms.base_learns_from_mean and shared.requires_grad:
        shared.register_hook(lambda grad: grad / students)


def run_branches(
    members: Sequence[int], branches: Sequence[nn.Module], inputs: Sequence[Tensor], executor: Executor
) -> tuple[tuple[Tensor, ...], tuple[tuple[Tensor, ...], ...]]:
    """Return the logits and the maps of the students `members`, whose inputs share the memory of the base's output.

    Raises:
        InPlaceError: a branch changed that memory. The results of all students may then be wrong.
        StudentError: a student raised an exception; a `Branch` raises InPlaceError itself.
    """
    before = change_count(inputs[0])
    logits, features = zip(*executor.forward(branches, inputs), strict=True)
    if change_count(inputs[0]) != before:
        pairs = zip(members, branches, strict=True)
        which = next((j for j, branch in pairs if changes_its_input(branch, inputs[0])), None)
        raise InPlaceError("branch") if which is None else InPlaceError("branch").of_student(which)
    return logits, features


def branch_inputs(shared: Tensor, count: int, learns_from_all: bool) -> list[Tensor]:
    """Return the base's map as one leaf a student, which requires a gradient if the base learns from that student."""
    wanted = [shared.requires_grad] + [shared.requires_grad and learns_from_all] * (count - 1)
    return [shared.detach().requires_grad_(each) for each in wanted]


def _feature_targets(
    features: Sequence[Sequence[Tensor]], signals: TeacherSignals, adapters: nn.ModuleList
) -> tuple[Sequence[Tensor], int]:
    """Return the maps to compare with, one a block, and the first student that is compared."""
    return (compared_channels(features[0], adapters), 1) if signals.hints is None else (signals.hints, 0)


def compared_channels(maps: Sequence[Tensor], adapters: nn.ModuleList) -> list[Tensor]:
    """Return the maps of student 0, one a block, without padded channels, which would count in the mean."""
    counts = [of_block[0].out_channels for of_block in adapters]
    return [x if x.shape[1] == count else x[:, :count] for x, count in zip(maps, counts, strict=True)]


def fed_features(
    ensemble: StudentEnsemble,
    positions: Sequence[int],
    first: int,
    features: Sequence[Sequence[Tensor]],
    targets: Sequence[Tensor],
    executor: Executor,
    forward: AbstractContextManager,
) -> list[Sequence[Tensor]]:
    """Return the maps that the intermediate loss compares where blocks are fed with the teacher's maps `targets`.

    Args:
        positions: positions in the family of the students that `executor` runs, and whose own maps are `features`.
        first: the first student that is compared.
    """
    inlets = [[of_block[j - first] for of_block in ensemble.helpers] if j >= first else None for j in positions]
    branches = [ensemble.branches[j] for j in positions]
    return maps_from_teacher_inputs(branches, inlets, features, targets, executor, forward)


def compared_student(ensemble: StudentEnsemble, i: int, maps: Sequence[Tensor]) -> ComparedStudent:
    """Return the `i`-th compared student of `ensemble`, which has the maps `maps`."""
    adapters, helpers = ([of_block[i] for of_block in of] for of in (ensemble.adapters, ensemble.helpers))
    return ComparedStudent(maps, adapters, helpers)


class StudentBackward:
    """The tensors where one student's backward pass begins, and their gradients.

    compared: the student as the intermediate loss sees it; None if it is not compared.
    """

    def __init__(self, logits: Tensor, grad: Tensor) -> None:
        self._roots, self._grads = [logits], [grad]
        self._apart: Tensor | None = None
        self.compared: ComparedStudent | None = None

    def compare(self, student: ComparedStudent) -> None:
        """Add the maps to the roots; `add_map_gradients` adds their gradients."""
        self._roots += student.maps
        self.compared = student

    def add_map_gradients(self, grads: Sequence[Tensor]) -> None:
        """Set the gradients of the maps, one a block."""
        self._grads += grads

    def keep_features_from(self, base_map: Tensor) -> None:
        """Have `base_map`, the student's input, receive the gradient of the logits alone.

        This takes a second pass from the logits to the input, which computes no gradient of a parameter. All other
        gradients come from the same pass as without it, and have the same bits.
        """
        self._apart = base_map if base_map.requires_grad else None

    def take(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return roots and gradients, and release them, so that backward can free the graph as it goes."""
        roots, grads = self._roots, self._grads
        self._roots, self._grads, self.compared = [], [], None
        return roots, grads

    def run(self) -> None:
        """Run the pass in the calling thread, on the current stream."""
        roots, grads = self.take()
        if self._apart is None:
            torch.autograd.backward(roots, grads)
            return
        (of_logits,) = torch.autograd.grad(roots[0], self._apart, grads[0], retain_graph=True)
        torch.autograd.backward(roots, grads)
        self._apart.grad = of_logits


def _feature_gradients(students: Sequence[StudentBackward], targets: Sequence[Tensor], terms: StepTerms) -> Tensor:
    """Return the intermediate loss of `students` and hand each of them its gradients; one call computes all blocks."""
    compared = [student.compared for student in students]
    loss, gradients = terms.comparison.value_and_grad(compared, targets, terms.feature_grad_scale)
    for student, of_maps in zip(students, gradients, strict=True):
        student.add_map_gradients(of_maps)
    return loss


def _backward_on_streams(
    students: list[StudentBackward],
    targets: Sequence[Tensor],
    terms: StepTerms,
    executor: Executor,
    buckets: GradientBuckets,
) -> Tensor | None:
    """Compute the intermediate loss of all students in few launches, then run all backward passes."""
    compared = [student for student in students if student.compared is not None]
    loss = _feature_gradients(compared, targets, terms) if compared else None
    if not buckets.active and terms.base_learns_from_features:
        begins = [student.take() for student in students]
        executor.backward([roots for roots, _ in begins], [grads for _, grads in begins])
        return loss

    def run(j: int) -> None:
        students[j].run()
        buckets.done(j)  # on the student's own stream, so that its sum waits for no other student

    executor.forward([run] * len(students), range(len(students)))
    return loss


def backward_in_threads(
    students: list[StudentBackward],
    targets: Sequence[Tensor],
    terms: StepTerms,
    executor: Executor,
    buckets: GradientBuckets,
    positions: Sequence[int] | None = None,
) -> Tensor | None:
    """Compute each student's intermediate loss right before its backward, so that few map gradients exist at once.

    Args:
        positions: positions of `students` in the family, for `buckets`; None: they are the whole family.
    """

    def run(j: int) -> Tensor | None:
        student = students[j]
        loss = None if student.compared is None else _feature_gradients([student], targets, terms)
        student.run()
        buckets.done(j if positions is None else positions[j])
        return loss

    losses = [loss for loss in executor.forward([run] * len(students), range(len(students))) if loss is not None]
    return torch.stack(losses).sum() if losses else None


def sum_in_order(grads: Sequence[Tensor]) -> Tensor:
    """Add the others to the first tensor, in place, and return it."""
    first, *others = grads
    for grad in others:
        first = first.add_(grad)
    return first
