"""A training step of ranks that share the students of a family."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from oekd_fast.distributed.buckets import GradientBuckets
from oekd_fast.distributed.grid import StudentGrid, wait
from oekd_fast.family.ensemble import StudentEnsemble
from oekd_fast.parallel.executor import Executor
from oekd_fast.training.backward import (
    FamilyLosses,
    StepTerms,
    StudentBackward,
    backward_in_threads,
    branch_inputs,
    compared_channels,
    compared_student,
    fed_features,
    run_base,
    run_branches,
    scale_base_gradient,
    sum_in_order,
)
from oekd_fast.training.distillation import family_value_and_grad


class OwnStudents:
    """The backward pass of a rank that computes some of the students; see `backward_side_by_side`.

    Logits of all students are exchanged, and the maps of student 0 go to the ranks of the others while students
    compute. Gradients at the output of the base are exchanged if `exact`, and added in the order of the students, which
    gives the bits of a single process. Otherwise each rank runs the base's backward pass for its own students, and the
    buckets add up the results.

    Args:
        exact: exchange the gradients at the output of the base.
    """

    def __init__(self, grid: StudentGrid, exact: bool) -> None:
        self._grid, self._exact = grid, exact
        # Shapes and dtypes of the maps of student 0, by the number of images.
        self._shapes: dict[int, list[tuple[tuple[int, ...], torch.dtype]]] = {}
        self._maps: list[Tensor] = []
        self._sent: list[dist.Work] = []

    def __call__(
        self,
        ensemble: StudentEnsemble,
        images: Tensor,
        target: Tensor,
        terms: StepTerms,
        executor: Executor,
        forward: AbstractContextManager,
        buckets: GradientBuckets,
    ) -> FamilyLosses:
        grid, own = self._grid, self._grid.own
        needs_maps = terms.feature_weight is not None and terms.signals.hints is None
        gate = gate_input = None
        with forward:
            shared = run_base(ensemble.base, images)
            scale_base_gradient(shared, len(ensemble.branches), terms)
            inputs = branch_inputs(shared, len(ensemble.branches), terms.base_learns_from_all)
            if needs_maps:
                self._start_maps(images)
            branches = [ensemble.branches[j] for j in own]
            if needs_maps and own[0] == 0:
                branches[0] = _SendsMaps(branches[0], partial(self._send_maps, images))
            logits, features = run_branches(
                [ensemble.members[j] for j in own], branches, [inputs[j] for j in own], executor
            )
            if ensemble.gate is not None:
                gate_input = shared.detach().requires_grad_(shared.requires_grad)
                gate = ensemble.gate(gate_input)
        statistics, grads, gate_grad = family_value_and_grad(
            self._exchange(logits, len(ensemble.branches)), target, terms.loss_options, terms.signals, gate,
            terms.grad_scale,
        )  # fmt: skip
        students = [StudentBackward(z, grads[j]) for j, z in zip(own, logits, strict=True)]
        targets: Sequence[Tensor] = ()
        if terms.feature_weight is not None:
            targets, first = terms.signals.hints, 0
            if needs_maps:
                targets, first = compared_channels(self._take_maps(images), ensemble.adapters), 1
            if terms.teacher_inputs:
                features = fed_features(ensemble, own, first, features, targets, executor, forward)
            for j, student, own_maps in zip(own, students, features, strict=True):
                if j >= first:
                    student.compare(compared_student(ensemble, j - first, own_maps))
                    if not terms.base_learns_from_features:
                        student.keep_features_from(inputs[j])
        feature = backward_in_threads(students, targets, terms, executor, buckets, own)
        if gate is not None:
            gate.backward(gate_grad)
        if shared.requires_grad:
            self._base_backward(shared, inputs, gate_input, own)
        buckets.base_done()
        zero = statistics.loss.new_zeros(())
        feature = None if terms.feature_weight is None else (zero if feature is None else feature)
        if grid.column:  # the losses on the logits are the same on all ranks with the same images
            statistics = type(statistics)(*(torch.zeros_like(value) for value in statistics))
        total = statistics.loss if feature is None else statistics.loss + terms.feature_weight * feature
        return FamilyLosses(statistics, feature, total)

    def _start_maps(self, images: Tensor) -> None:
        """Start to receive the maps of student 0 where another rank computes it, once their shapes are known."""
        if 0 not in self._grid.own and len(images) in self._shapes:
            self._receive(images)

    def _receive(self, images: Tensor) -> None:
        self._maps = [_map_memory(shape, dtype, images.device) for shape, dtype in self._shapes[len(images)]]
        self._sent = [self._grid.send_from(0, feature) for feature in self._maps]

    def _send_maps(self, images: Tensor, features: Sequence[Tensor]) -> None:
        """Start to send the maps of student 0; may be called while other students compute."""
        self._maps = [feature.detach().contiguous(memory_format=torch.channels_last) for feature in features]
        if len(images) in self._shapes:
            self._sent = [self._grid.send_from(0, feature) for feature in self._maps]

    def _take_maps(self, images: Tensor) -> list[Tensor]:
        """Return the maps of student 0 on every rank. The first step tells all ranks their shapes and dtypes."""
        if len(images) not in self._shapes:
            about = [(list(feature.shape), str(feature.dtype)) for feature in self._maps]
            told = self._grid.world.gather_bytes(json.dumps(about).encode())[self._grid.source(0)]
            self._shapes[len(images)] = [
                (tuple(shape), getattr(torch, dtype.removeprefix("torch."))) for shape, dtype in json.loads(told)
            ]
            if 0 in self._grid.own:
                self._sent = [self._grid.send_from(0, feature) for feature in self._maps]
            else:
                self._receive(images)
        wait(self._sent)
        maps, self._maps, self._sent = self._maps, [], []
        return maps

    def _exchange(self, logits: Sequence[Tensor], students: int) -> list[Tensor]:
        """Return the logits of all students, detached."""
        of_all = logits[0].new_zeros(students, *logits[0].shape)
        for j, own in zip(self._grid.own, logits, strict=True):
            of_all[j] = own.detach()
        return list(self._grid.add_up(of_all))  # zeros elsewhere, so that no sum rounds

    def _base_backward(
        self, shared: Tensor, inputs: Sequence[Tensor], gate_input: Tensor | None, own: Sequence[int]
    ) -> None:
        learning = [j for j, x in enumerate(inputs) if x.requires_grad]
        if self._exact:
            grads = [torch.empty_like(shared) for _ in learning]
            for j, grad in zip(learning, grads, strict=True):
                if j in own:
                    grad.copy_(inputs[j].grad)
            wait([self._grid.send_from(j, grad) for j, grad in zip(learning, grads, strict=True)])
        else:
            grads = [inputs[j].grad for j in learning if j in own]
        if gate_input is not None and (self._exact or self._grid.column == 0):
            grads.append(gate_input.grad)
        shared.backward(sum_in_order(grads) if grads else torch.zeros_like(shared))


class _SendsMaps(nn.Module):
    """Branch of student 0 that hands its maps to `send` as soon as they are computed."""

    def __init__(self, branch: nn.Module, send: Callable[[Sequence[Tensor]], None]) -> None:
        super().__init__()
        self.branch = branch
        self.training = branch.training
        self._send = send

    def forward(self, shared: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        logits, features = self.branch(shared)
        self._send(features)
        return logits, features


def clip_gradients(
    grid: StudentGrid, own: Sequence[nn.Parameter], shared: Sequence[nn.Parameter], largest: float
) -> None:
    """Scale the gradients so that their norm over the whole family is at most `largest`.

    Args:
        own: parameters of this rank's students.
        shared: parameters that all ranks have gradients of.
    """
    squares = [
        torch.nn.utils.get_total_norm([p.grad for p in part if p.grad is not None]).square() for part in (own, shared)
    ]
    norm = (grid.add_up(squares[0]) + squares[1]).sqrt()
    torch.nn.utils.clip_grads_with_norm_([*own, *shared], largest, norm)


def share_overflow(grid: StudentGrid, own: Sequence[nn.Parameter]) -> None:
    """Make a gradient infinite on all ranks if one is on any of them, so that all of them skip the step."""
    grads = [p.grad for p in own if p.grad is not None]
    finite = torch.stack([grad.sum(dtype=torch.float32) for grad in grads]).isfinite().all()
    bad = grid.add_up((~finite).float())
    grads[0].add_(torch.where(bad > 0, torch.inf, 0.0))


def collect(
    grid: StudentGrid,
    families: Sequence[Sequence[Sequence[nn.Module]]],
    optimizer: Optimizer,
) -> None:
    """Copy weights, statistics and optimizer state of each student from its ranks to all ranks. Collective.

    Args:
        families: modules of each student in the trained family, and in its moving average if there is one.
    """
    template = next(iter(optimizer.state.values()), {})
    works = []
    for j, own in enumerate(families[0]):
        modules = [module for family in families for module in family[j]]
        tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
        for parameter in (p for module in own for p in module.parameters()):
            state = optimizer.state[parameter]
            for name, like in template.items():
                if isinstance(like, Tensor):
                    if name not in state:
                        state[name] = torch.zeros_like(parameter) if like.dim() else torch.zeros_like(like)
                    tensors.append(state[name])
        works += [grid.send_from(j, tensor.detach()) for tensor in tensors]
    wait(works)


def _map_memory(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return memory for a map, in channels_last: ranks need not choose the same layout for their own maps."""
    return torch.empty(shape, dtype=dtype, device=device, memory_format=torch.channels_last)
