"""The ensemble distillation loss of classifiers, without their whole logits in memory.

Rows are taken in chunks: the logits of a chunk, its loss and their gradients share one buffer. The gradients of hidden
states and classifiers are therefore computed in the forward pass, as in ``torch.nn.functional.linear_cross_entropy``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from oekd_fast.losses.calls import EnsembleKDCall, KDOptions
from oekd_fast.losses.ensemble_kd import call_loss, call_value_and_grad
from oekd_fast.losses.linear_checks import (
    check_chunk_rows,
    check_classifiers,
    check_linear_options,
    check_student_weights,
    check_teacher,
)
from oekd_fast.losses.reference import EnsembleKDOutput
from oekd_fast.losses.target_checks import check_num_items, check_target, check_weight_length

CHUNK_BYTES = 64 << 20  # of the logits of all students in a chunk of rows
MIN_CHUNK_ROWS = 64  # fewer rows would leave matrix products bound by the weights' traffic


def linear_ensemble_kd_loss(
    hidden: Sequence[Tensor],
    weights: Sequence[Tensor],
    target: Tensor | None,
    *,
    biases: Sequence[Tensor | None] | None = None,
    ensemble_weights: Tensor | None = None,
    teacher_hidden: Tensor | None = None,
    teacher_weight: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    num_items: float | Tensor | None = None,
    chunk_rows: int | None = None,
    backend: str = "auto",
    validate: bool = False,
    **options: Any,
) -> EnsembleKDOutput:
    """Compute :func:`ensemble_kd_loss` of the logits ``hidden[j] @ weights[j].T + biases[j]``, chunk by chunk.

    For large numbers of classes, such as the vocabularies of language models, whose logits would fill the memory. Peak
    memory beside the arguments: the gradients, and the logits of one chunk of rows (about 64 MiB of all students by
    default). For 16-bit tensors the gradients are summed in float32 and rounded once in the backward pass.

    Args:
        hidden: S tensors [..., D_j], the inputs of the classifiers, with equal sizes of all dimensions but the last.
            Each position is a row, as with ``class_dim=-1``.
        weights: S classifier weights [C, D_j], which may be one tensor or views of one.
        target: class indices of the shape [...] of the rows, or probabilities [..., C].
        biases: S tensors [C] or None; None stands for no biases.
        ensemble_weights: [S]; without a gradient.
        teacher_hidden, teacher_weight, teacher_bias: an external teacher as a classifier: [..., D], [C, D] and [C] or
            None, without gradients.
        num_items: as in :func:`ensemble_kd_loss`.
        chunk_rows: rows of a chunk; None stands for about 64 MiB of logits, but at least 64 rows.
        backend, validate: as in :func:`ensemble_kd_loss`.
        **options: the other arguments of :func:`ensemble_kd_loss`, which are fields of
            :class:`oekd_fast.losses.calls.KDOptions`; none of them requires a gradient. ``reduction`` is "mean" or
            "sum", and ``class_dim`` does not apply.

    Returns:
        EnsembleKDOutput: ``loss`` is differentiable once, for `hidden`, `weights` and `biases`. Its graph can be used
            for one backward pass. The statistics are detached.

    Under ``torch.autocast``, the classifiers run in its dtype. Under ``torch.compile``, the call is a graph break.

    Raises:
        ValueError, TypeError, RuntimeError: as :func:`ensemble_kd_loss`, also for tensors that do not fit each other,
            and for options that this form does not take; naming the argument, what was expected and what was given.
    """
    parsed = KDOptions(**options)
    check_linear_options(parsed)
    biases = [None] * len(hidden) if biases is None else biases
    check_classifiers(hidden, weights, biases)
    first, classes = hidden[0], weights[0].shape[0]
    rows_shape = first.shape[:-1]
    check_target(target, torch.Size((*rows_shape, classes)), len(rows_shape), first.device, parsed)
    if num_items is not None:
        check_num_items(num_items, parsed, first.device)
    teacher = None
    if teacher_hidden is not None or teacher_weight is not None or teacher_bias is not None:
        check_teacher(teacher_hidden, teacher_weight, teacher_bias, first, classes)
        teacher = _Classifier(*_autocast(teacher_hidden, teacher_weight, teacher_bias)).detached()
    if parsed.weight is not None:
        check_weight_length(parsed.weight, classes, first.device)
    if ensemble_weights is not None:
        check_student_weights(ensemble_weights, len(hidden))
    check_chunk_rows(chunk_rows)
    flat = [tensor for h, w, b in zip(hidden, weights, biases, strict=True) for tensor in _autocast(h, w, b)]
    if target is not None:
        target = target.detach().reshape(-1, *target.shape[len(rows_shape) :])
    problem = _Problem(target, parsed, ensemble_weights, teacher, num_items, chunk_rows, backend, validate)
    return EnsembleKDOutput(*_compute(problem, flat))


@torch.compiler.disable
def _compute(problem: _Problem, flat: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    return _LinearLoss.apply(problem, torch.is_grad_enabled(), *flat)


def _autocast(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return a classifier's tensors, with the rows as [N, D], in the dtype that ``torch.nn.functional.linear`` uses."""
    hidden = hidden.flatten(0, -2)
    kind = hidden.device.type
    if not torch.is_autocast_enabled(kind):
        return hidden, weight, bias
    dtype = torch.get_autocast_dtype(kind)
    return hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


@dataclass(frozen=True)
class _Classifier:
    hidden: Tensor  # [N, D]
    weight: Tensor  # [C, D]
    bias: Tensor | None  # [C]

    def detached(self) -> _Classifier:
        return _Classifier(
            self.hidden.detach(), self.weight.detach(), None if self.bias is None else self.bias.detach()
        )

    def logits(self, rows: slice, out: Tensor) -> Tensor:
        """Write the logits of some rows to `out`, [n, C]."""
        hidden, weight = self.hidden[rows], self.weight.t()
        if self.bias is None:
            return torch.mm(hidden, weight, out=out)
        return torch.addmm(self.bias, hidden, weight, out=out)


@dataclass(frozen=True)
class _Problem:
    """The checked arguments beside the classifiers; `target` is [N] or [N, C]."""

    target: Tensor | None
    options: KDOptions
    ensemble_weights: Tensor | None
    teacher: _Classifier | None
    num_items: float | Tensor | None
    chunk_rows: int | None
    backend: str
    validate: bool

    def rows_of_a_chunk(self, students: int, classes: int, itemsize: int) -> int:
        if self.chunk_rows is not None:
            return self.chunk_rows
        return max(MIN_CHUNK_ROWS, CHUNK_BYTES // max(1, students * classes * itemsize))

    def divisors(self, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return what divides the sums of cross-entropies and of divergences, as scalars that are not 0."""
        options, target = self.options, self.target
        dtype = torch.float32 if device.type == "mps" else torch.float64

        def scalar(number) -> Tensor:
            return torch.as_tensor(number, device=device).detach().reshape(()).to(dtype)

        if options.reduction == "sum":
            return scalar(1.0), scalar(1.0)
        if self.num_items is not None:
            return scalar(self.num_items), scalar(self.num_items)
        if target is None or target.is_floating_point():
            return scalar(max(rows, 1)), scalar(max(rows, 1))
        indices = target.long()
        counted = indices != options.ignore_index
        number = scalar(counted.sum())
        total = number
        if options.weight is not None:
            of_labels = options.weight[indices.clamp(0, options.weight.shape[0] - 1)]
            total = scalar(of_labels.where(counted, 0.0).sum(dtype=dtype))
        return total.where(total > 0, 1.0), number.where(number > 0, 1.0)

    def chunk(self, rows: slice, logits: Sequence[Tensor], teacher_logits: Tensor | None, ratio) -> EnsembleKDCall:
        """Return the call of one chunk: sums over its rows, cross-entropies times `ratio`."""
        options = self.options
        weighted = {} if ratio is None else {"ce_weight": ratio * options.ce_weight}
        if ratio is not None and options.ensemble_learns:
            weighted["ensemble_ce_weight"] = ratio * options.ensemble_ce_weight
        return EnsembleKDCall.of(
            logits,
            None if self.target is None else self.target[rows],
            replace(options, reduction="sum", **weighted),
            ensemble_weights=self.ensemble_weights,
            teacher_logits=teacher_logits,
        )


class _LinearLoss(torch.autograd.Function):
    """Loss and statistics; the gradients are computed in the forward pass and multiplied by the upstream gradient.

    The inputs are hidden [N, D_j], weight [C, D_j] and bias [C] or None of each student in turn.
    """

    @staticmethod
    def forward(ctx, problem, differentiable, *flat):
        students = [_Classifier(*flat[i : i + 3]).detached() for i in range(0, len(flat), 3)]
        needed = ctx.needs_input_grad[2:] if differentiable else [False] * len(flat)
        first, classes = students[0].hidden, students[0].weight.shape[0]
        rows, dtype = first.shape[0], first.dtype
        size = max(1, min(rows, problem.rows_of_a_chunk(len(students), classes, first.element_size())))
        ce_divisor, kd_divisor = problem.divisors(rows, first.device)
        options = problem.options
        # Cross-entropies and divergences have different divisors only with class weights.
        ratio = None if options.weight is None or problem.target is None else kd_divisor / ce_divisor
        # 16-bit gradients are summed in float32 and without the divisor, so that fp16 holds those of a chunk.
        narrow = dtype in (torch.bfloat16, torch.float16)
        scale = None if narrow else (1.0 / kd_divisor).to(dtype)
        grads = [_accumulator(t, narrow) if need else None for t, need in zip(flat, needed, strict=True)]
        buffer = first.new_empty((len(students), size, classes))
        teacher_buffer = None
        if problem.teacher is not None:
            teacher_buffer = problem.teacher.hidden.new_empty((size, classes))
        totals = None
        for begin in range(0, rows, size) if rows else (0,):
            chunk = slice(begin, min(begin + size, rows))
            n = chunk.stop - chunk.start
            logits = [s.logits(chunk, out) for s, out in zip(students, buffer[:, :n].unbind(0), strict=True)]
            teacher_logits = None
            if teacher_buffer is not None:
                teacher_logits = problem.teacher.logits(chunk, teacher_buffer[:n])
            call = problem.chunk(chunk, logits, teacher_logits, ratio)
            if any(needed):
                output, _ = call_value_and_grad(call, scale, logits, problem.backend, problem.validate)
                _accumulate(grads, students, logits, chunk)
            else:
                output = call_loss(call, backend=problem.backend, validate=problem.validate)
            *sums, correct = output
            sums = [value.to(ce_divisor.dtype) for value in sums] + [correct]
            totals = sums if totals is None else [a + b for a, b in zip(totals, sums, strict=True)]
        loss, ce, kd, ensemble_ce, correct = totals
        divisors = (kd_divisor, ce_divisor, kd_divisor, ce_divisor)
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        result = [(t / d).to(kind) for t, d in zip((loss, ce, kd, ensemble_ce), divisors, strict=True)]
        ctx.grads, ctx.dtypes = grads, [None if t is None else t.dtype for t in flat]
        ctx.factor = (1.0 / kd_divisor).float() if narrow else None
        ctx.mark_non_differentiable(*result[1:], correct)
        ctx.set_materialize_grads(False)
        return *result, correct

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream, *unused):
        if upstream is None:
            return None, None, *[None] * len(ctx.dtypes)
        if ctx.grads is None:
            raise RuntimeError(
                "linear_ensemble_kd_loss: expected one backward pass, got a second one; the gradients are given away, "
                "since a copy would double the memory"
            )
        # The gradients are given away, so that autograd keeps them without a copy.
        grads, ctx.grads = ctx.grads, None
        if ctx.factor is not None:
            upstream = upstream * ctx.factor
        elif upstream.device.type == "cpu" and upstream.item() == 1.0:
            return None, None, *grads
        for i, grad in enumerate(grads):
            if grad is not None:
                grads[i] = grad.mul_(upstream).to(ctx.dtypes[i])
        return None, None, *grads


def _accumulator(tensor: Tensor, narrow: bool) -> Tensor:
    return torch.zeros(tensor.shape, dtype=torch.float32 if narrow else tensor.dtype, device=tensor.device)


def _accumulate(grads: list, students: Sequence[_Classifier], logits_grads: Sequence[Tensor], rows: slice) -> None:
    """Add a chunk's gradients to those of hidden states, weights and biases."""
    for j, (student, grad) in enumerate(zip(students, logits_grads, strict=True)):
        to_hidden, to_weight, to_bias = grads[3 * j : 3 * j + 3]
        if to_hidden is not None:
            if to_hidden.dtype == grad.dtype:
                torch.mm(grad, student.weight, out=to_hidden[rows])
            else:
                to_hidden[rows] = grad @ student.weight
        if to_weight is not None:
            if to_weight.dtype == grad.dtype:
                to_weight.addmm_(grad.t(), student.hidden[rows])
            else:
                to_weight += grad.t() @ student.hidden[rows]
        if to_bias is not None:
            to_bias += grad.sum(dim=0, dtype=to_bias.dtype)
