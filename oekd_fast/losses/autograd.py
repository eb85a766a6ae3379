"""The differentiable loss of the compiled backends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from oekd_fast import native
from oekd_fast.losses import transforms
from oekd_fast.losses.backends import NATIVE, TRITON, Backend
from oekd_fast.losses.calls import EnsembleKDCall


def differentiable_loss(call: EnsembleKDCall, backend: Backend) -> Sequence[Tensor]:
    """Compute the statistics of a call by a compiled backend; the first, the loss, is differentiable once."""
    ops, kwargs = backend.ops(call), call.op_kwargs()
    weights = call.ensemble_weights if call.weights_need_grad else None
    # On the CPU the op usually has an autograd kernel of its own, which costs less than a Function in Python. Only that
    # kernel keeps the gradient in torch.export, which records the forward pass of a Function.
    eager = call.stacked is None and not torch.compiler.is_compiling()
    has_kernel = backend is NATIVE and native.why_no_executor() is None
    if has_kernel and weights is None and (eager or transforms.is_exporting()):
        return ops.ensemble_kd_value(call.students, **kwargs)
    if not torch.is_grad_enabled() or not (weights is not None or any(z.requires_grad for z in call.students)):
        return ops.ensemble_kd_value(call.students, **kwargs)
    stacked = call.stacked is not None
    if backend is TRITON and TRITON.keeps_rows(call):
        return _LossFromRows.apply(ops, stacked, kwargs, weights, *call.inputs)
    # On a GPU the upstream gradient is unknown to the host, which would have to wait for it. That of one loss a row is
    # seldom 1.
    at_once = backend is NATIVE and call.options.reduction != "none" and not torch.compiler.is_compiling()
    return _Loss.apply(ops, at_once, stacked, kwargs, weights, *call.inputs)


class _Loss(torch.autograd.Function):
    """Computes the gradients in the forward pass (``at_once``) or when the upstream gradient is known.

    On the CPU, one pass over the logits makes loss and gradients, since the upstream gradient is nearly always 1. If
    it is not, the gradients are computed again with it, so that they are rounded once.
    """

    @staticmethod
    def forward(ctx, ops, at_once, stacked, kwargs, weights, *inputs):
        ctx.ops, ctx.stacked, ctx.kwargs, ctx.through_weights = ops, stacked, kwargs, weights is not None
        ctx.grads = None
        if at_once:
            statistics, ctx.grads = _value_and_grad(ops, inputs, stacked, kwargs, None, ctx.through_weights)
        else:
            statistics = ops.ensemble_kd_value(_students(inputs, stacked), **kwargs)
        ctx.save_for_backward(*inputs)
        ctx.mark_non_differentiable(*statistics[1:])
        ctx.set_materialize_grads(False)
        return tuple(statistics)

    @staticmethod
    def backward(ctx, upstream, *unused):
        if upstream is None:
            return (None,) * (5 + len(ctx.saved_tensors))
        _check_first_order()
        if transforms.is_batched(upstream):
            inputs = [z.detach() for z in ctx.saved_tensors]
            grads = _batched_grads(ctx.ops, inputs, ctx.stacked, ctx.kwargs, upstream, ctx.through_weights)
        elif ctx.grads is not None and not transforms.hides_values(upstream) and upstream.item() == 1.0:
            # The gradients are given away, so that autograd keeps them without a copy. A second backward pass
            # computes new ones.
            grads, ctx.grads = ctx.grads, None
        else:
            inputs = [z.detach() for z in ctx.saved_tensors]
            _, grads = _value_and_grad(ctx.ops, inputs, ctx.stacked, ctx.kwargs, upstream, ctx.through_weights)
        return None, None, None, None, *grads


class _LossFromRows(torch.autograd.Function):
    """Keeps a few numbers a row in the forward pass, from which and the logits backward computes the gradients.

    The upstream gradient is read on the device.
    """

    @staticmethod
    def forward(ctx, ops, stacked, kwargs, weights, *inputs):
        *statistics, row_statistics, counted = ops.ensemble_kd_value_and_rows(_students(inputs, stacked), **kwargs)
        ctx.ops, ctx.stacked, ctx.kwargs = ops, stacked, kwargs
        ctx.weights_dtype = None if weights is None else weights.dtype
        ctx.save_for_backward(row_statistics, counted, *inputs)
        ctx.mark_non_differentiable(*statistics[1:])
        ctx.set_materialize_grads(False)
        return tuple(statistics)

    @staticmethod
    def backward(ctx, upstream, *unused):
        row_statistics, counted, *inputs = ctx.saved_tensors
        if upstream is None:
            return (None,) * (4 + len(inputs))
        _check_first_order()
        inputs = [z.detach() for z in inputs]
        grads = gradients_from_rows(
            ctx.ops, ctx.stacked, ctx.kwargs, inputs, row_statistics, counted, upstream, ctx.weights_dtype
        )
        return None, None, None, *grads


def gradients_from_rows(
    ops,
    stacked: bool,
    kwargs: dict[str, Any],
    inputs: Sequence[Tensor],
    row_statistics: Tensor,
    counted: Tensor,
    upstream: Tensor,
    weights_dtype: torch.dtype | None,
) -> tuple[Tensor | None, ...]:
    """The gradient of the weights, or None without a dtype of it, and those of `inputs`, from the row statistics."""
    if transforms.is_batched(upstream):
        return _batched_grads(ops, inputs, stacked, kwargs, upstream, weights_dtype is not None)
    grads = [torch.empty_like(z) for z in inputs]
    weights_grad = ops.ensemble_kd_grad_out(
        _students(inputs, stacked),
        **kwargs,
        row_statistics=row_statistics,
        counted=counted,
        grad_scale=upstream,
        weights_grad=weights_dtype is not None,
        out=_students(grads, stacked),
    )
    return weights_grad.to(weights_dtype) if weights_dtype else None, *grads


def _check_first_order() -> None:
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "ensemble_kd_loss: the compiled backends are differentiable once, got create_graph=True; "
            "backend='reference' is differentiable twice"
        )


def _batched_grads(
    ops, inputs: Sequence[Tensor], stacked: bool, kwargs: dict[str, Any], upstream: Tensor, through_weights: bool
) -> tuple[Tensor | None, ...]:
    """Gradients as by :func:`_value_and_grad` for ``is_grads_batched=True``, where `upstream` hides a batch of numbers.

    The kernels cannot read these numbers, which therefore multiply the gradients for an upstream gradient of 1. Those
    are float32, so that 16-bit gradients are rounded to their dtype once.
    """
    dtype = inputs[0].dtype
    per_row = kwargs.get("per_row", False)
    if per_row and through_weights and kwargs["ensemble_weights"].dim() == 1:
        raise RuntimeError(
            "ensemble_kd_loss: is_grads_batched=True with reduction='none' and ensemble_weights [S] is only supported "
            "by backend='reference'"
        )
    _, (weights_grad, *grads) = _value_and_grad(
        ops, [z.float() for z in inputs], stacked, kwargs, None, through_weights
    )
    if weights_grad is not None:
        factor = upstream[:, None] if per_row else upstream
        weights_grad = (weights_grad * factor).to(weights_grad.dtype)
    if per_row:
        rows = _students(inputs, stacked)[0].shape
        upstream = upstream.reshape(rows[0], 1, *rows[2:])  # [R, 1] or [O, 1, I]
    return weights_grad, *((grad * upstream).to(dtype) for grad in grads)


def _students(inputs: Sequence[Tensor], stacked: bool) -> Sequence[Tensor]:
    return inputs[0].unbind(0) if stacked else inputs


def _value_and_grad(
    ops,
    inputs: Sequence[Tensor],
    stacked: bool,
    kwargs: dict[str, Any],
    grad_scale: Tensor | None,
    through_weights: bool,
) -> tuple[Sequence[Tensor], tuple[Tensor | None, ...]]:
    """Statistics; then the gradient of the weights, or None, and those of `inputs`: S of [B, C], or one [S, B, C]."""
    if not stacked and not through_weights:
        *statistics, grads = ops.ensemble_kd_value_and_grad(inputs, **kwargs, grad_scale=grad_scale)
        return statistics, (None, *grads)
    grads = [torch.empty_like(z) for z in inputs]
    weights_grad = torch.empty_like(kwargs["ensemble_weights"]) if through_weights else None
    statistics = ops.ensemble_kd_value_and_grad_out(
        _students(inputs, stacked),
        **kwargs,
        grad_scale=grad_scale,
        out=_students(grads, stacked),
        weights_grad=weights_grad,
    )
    return statistics, (weights_grad, *grads)
