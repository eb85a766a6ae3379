"""The public loss: arguments, choice of the backend, autograd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from oekd_fast.losses import reference
from oekd_fast.losses.backends import choose_backend, ensemble_attached, other_terms, triton_kernels
from oekd_fast.losses.calls import KDOptions
from oekd_fast.losses.checks import (
    check_call,
    check_labels,
    check_out,
    check_tensor,
    check_values,
    check_weights_grad,
)
from oekd_fast.losses.reference import EnsembleKDOutput


def ensemble_kd_loss(
    logits: Sequence[Tensor] | Tensor,
    target: Tensor | None,
    *,
    temperature: float | Tensor = 2.0,
    ce_weight: float | Tensor = 0.7,
    kd_weight: float | Tensor = 0.15,
    ensemble_weights: Tensor | None = None,
    detach_ensemble: bool = True,
    ensemble_ce_weight: float | Tensor = 0.0,
    teacher_logits: Tensor | None = None,
    mixing: Tensor | None = None,
    mixes: str = "logits",
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    backend: str = "auto",
    validate: bool = False,
) -> EnsembleKDOutput:
    """Loss of S students that learn from the labels and from their own ensemble (ECCV 2020, arXiv 2011.07449)::

        loss = ce_weight * sum_j CE(z_j, y)  +  kd_weight * sum_j T^2 KL(softmax(zE/T) || softmax(z_j/T))
               +  ensemble_ce_weight * CE(zE, y)
        zE   = sum_j w_j z_j

    or, with ``teacher_logits`` or ``mixing``, from other targets. Related objectives are arguments of this one::

        Hinton, Vinyals, Dean 2015      teacher_logits=v
        born-again (Furlanello 2018)    teacher_logits=v of the previous generation, temperature=1
        mutual learning (Zhang 2018)    mixing=W, mixes="probabilities", temperature=1; W_ji = 1/(S-1), W_jj = 0
        codistillation (Anil 2018)      the same W: its gradients are those of the others' mean prediction as target
        ONE (Lan, Zhu, Gong 2018)       ensemble_weights=gate [B, S], ensemble_ce_weight=1, temperature=3
        students on their own           kd_weight=0

    Args:
        logits: S tensors [B, C], or one [S, B, C]; fp32, fp16, bf16 (fp64: reference backend only); any strides.
        target: int64 [B], class index in [0, C); rows equal to ``ignore_index`` count for nothing. None only if
            ``ce_weight == 0 == ensemble_ce_weight``: the distillation term alone.
        temperature: T > 0. The distillation term carries T^2. It and the three weights are numbers, or tensors of one
            element and any floating dtype on the logits' device: read there at each call and each replay of a graph,
            as float32 (float64 for float64 logits), never differentiated. Backward uses what the loss has read.
        ensemble_weights: [S], or a gate [B, S] with weights for each row, floating; None for 1/S each. A student of
            weight 0 has no say, even where its logit is -inf. Differentiable where the loss depends on it with
            gradients: through the target where it is not detached, and through the ensemble's cross-entropy.
        detach_ensemble: True, as in the paper: no gradient flows through the ensemble as a target. False: gradients
            for the logits through zE, and for ``ensemble_weights``; on the CPU by the reference.
        ensemble_ce_weight: of the ensemble's own cross-entropy, whose gradient reaches logits and
            ``ensemble_weights`` whatever ``detach_ensemble`` says.
        teacher_logits: [B, C], any floating dtype and strides, never differentiated: the target of every student is
            softmax(teacher_logits / T) instead of the ensemble's. The statistics of the ensemble stay the ensemble's.
        mixing: W, floating [S, S], or [S, S + 1] with ``teacher_logits`` as its last column, never differentiated: row
            j says how student j's target mixes the students, who are detached. A weight of 0 gives no say, even where
            the logit is -inf. Excludes ``detach_ensemble=False`` and a gate.
        mixes: "logits": kd_j = T^2 KL(softmax(sum_i W_ji z_i / T) || softmax(z_j / T)); "probabilities":
            kd_j = T^2 sum_i W_ji KL(softmax(z_i / T) || softmax(z_j / T)), whose gradients are those of the target
            sum_i W_ji softmax(z_i / T) where the row sums to 1.
        label_smoothing: in [0, 1], of the cross-entropy terms, as in ``torch.nn.functional.cross_entropy``.
        reduction: "mean" over the rows that are not ignored, or "sum".
        backend: "auto" takes the compiled kernel of the logits' device where it is there and covers the call, else
            the reference; "reference", "native" (CPU) and "triton" (CUDA) insist.
        validate: look at the labels, and at temperature and weights in tensors, before anything else, on any device:
            a GPU is waited for.

    Returns:
        EnsembleKDOutput: ``loss`` is differentiable (once), the statistics are detached; nothing leaves the device.
        All rows ignored, or none given: loss 0, gradients 0.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came. Labels out of range are found
            at once on the CPU, and with ``validate``; else, on other devices, their rows make the loss and ``ce`` NaN
            (``kd`` stays finite) and are never used as an index. So it is with a temperature or weight of one element:
            where it is not looked at, one that is not finite makes the loss NaN or infinite, a temperature of 0 makes
            ``kd`` and the loss NaN, and a negative one gives numbers that mean nothing.
        RuntimeError: the backend asked for is not there.
    """
    options = KDOptions(
        temperature, ce_weight, kd_weight, detach_ensemble, label_smoothing, ignore_index, reduction,
        ensemble_ce_weight, mixing, mixes,
    )  # fmt: skip
    students = check_call(logits, target, options, ensemble_weights, teacher_logits)
    chosen = choose_backend(backend, students, options, ensemble_weights, teacher_logits)
    check_values(options, chosen, validate)
    check_labels(target, students[0], options.ignore_index, chosen, validate)
    if chosen == "reference":
        return reference.ensemble_kd(students, target, options, ensemble_weights, teacher_logits)
    ops, arguments = _ops_of(chosen, students), _op_arguments(target, options, ensemble_weights, teacher_logits)
    stacked = isinstance(logits, Tensor)
    tensors = (logits,) if stacked else students
    through = ensemble_weights is not None and ensemble_weights.requires_grad
    through = through and (options.ensemble_learns or ensemble_attached(options, teacher_logits))
    if not torch.is_grad_enabled() or not (through or any(z.requires_grad for z in students)):
        return EnsembleKDOutput(*ops.ensemble_kd_value(students, *arguments))
    weights = ensemble_weights if through else None
    if chosen == "triton" and not other_terms(options, ensemble_weights, teacher_logits):
        return EnsembleKDOutput(*_EnsembleKDFromRows.apply(stacked, arguments, weights, *tensors))
    return EnsembleKDOutput(*_EnsembleKD.apply(chosen, stacked, arguments, weights, *tensors))


def ensemble_kd_value_and_grad(
    logits: Sequence[Tensor] | Tensor,
    target: Tensor | None,
    *,
    temperature: float | Tensor = 2.0,
    ce_weight: float | Tensor = 0.7,
    kd_weight: float | Tensor = 0.15,
    ensemble_weights: Tensor | None = None,
    detach_ensemble: bool = True,
    ensemble_ce_weight: float | Tensor = 0.0,
    teacher_logits: Tensor | None = None,
    mixing: Tensor | None = None,
    mixes: str = "logits",
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    grad_scale: Tensor | None = None,
    out: Sequence[Tensor] | Tensor | None = None,
    weights_grad: Tensor | None = None,
    backend: str = "auto",
    validate: bool = False,
) -> tuple[EnsembleKDOutput, tuple[Tensor, ...]]:
    """Loss and its gradients for the logits at once, outside autograd; arguments as :func:`ensemble_kd_loss`.

    Args:
        grad_scale: one-element tensor that multiplies the gradients (not the loss): a loss scale.
        out: S buffers shaped and typed as the logits, or one [S, B, C], to be overwritten with the gradients.
        weights_grad: buffer shaped and typed as ``ensemble_weights``, to be overwritten with their gradient.

    Returns:
        The statistics, and S gradients in the logits' dtype.
    """
    options = KDOptions(
        temperature, ce_weight, kd_weight, detach_ensemble, label_smoothing, ignore_index, reduction,
        ensemble_ce_weight, mixing, mixes,
    )  # fmt: skip
    students = check_call(logits, target, options, ensemble_weights, teacher_logits)
    if grad_scale is not None:
        check_tensor("grad_scale", grad_scale, students[0].device)
        if grad_scale.numel() != 1:
            raise ValueError(f"grad_scale: expected a tensor of one element, got shape {list(grad_scale.shape)}")
    buffers = None if out is None else check_out(out, students)
    if weights_grad is not None:
        check_weights_grad(weights_grad, ensemble_weights)

    chosen = choose_backend(backend, students, options, ensemble_weights, teacher_logits)
    check_values(options, chosen, validate)
    check_labels(target, students[0], options.ignore_index, chosen, validate)
    if chosen == "reference":
        tensors = (students, target, options, ensemble_weights, teacher_logits)
        return _reference_value_and_grad(*tensors, grad_scale, buffers, weights_grad)
    ops, arguments = _ops_of(chosen, students), _op_arguments(target, options, ensemble_weights, teacher_logits)
    students = [z.detach() for z in students]
    grad_scale = _detached(grad_scale)
    if buffers is None and weights_grad is None:
        *statistics, grads = ops.ensemble_kd_value_and_grad(students, *arguments, grad_scale=grad_scale)
        return EnsembleKDOutput(*statistics), tuple(grads)
    if buffers is None:
        buffers = [torch.empty_like(z) for z in students]
    statistics = ops.ensemble_kd_value_and_grad_out(
        students, *arguments, grad_scale=grad_scale, out=buffers, weights_grad=weights_grad
    )
    return EnsembleKDOutput(*statistics), tuple(buffers)


class _EnsembleKD(torch.autograd.Function):
    """On the CPU: loss and gradients in one pass over the logits, since the upstream gradient is nearly always 1.

    Where it is not, in a compiled graph, and on a GPU, where nobody looks at it, they are made when it is known:
    rounded once.
    """

    @staticmethod
    def forward(ctx, backend, stacked, arguments, weights, *tensors):
        ctx.call, ctx.through, ctx.grads = (backend, stacked, arguments), weights is not None, None
        if backend == "triton" or torch.compiler.is_compiling():
            students = tensors[0].unbind(0) if stacked else tensors
            statistics = _ops_of(backend, students).ensemble_kd_value(students, *arguments)
        else:
            statistics, ctx.grads = _value_and_grad_like(tensors, *ctx.call, None, ctx.through)
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(*statistics[1:])
        ctx.set_materialize_grads(False)
        return tuple(statistics)

    @staticmethod
    def backward(ctx, upstream, *unused):
        if upstream is None:
            return None, None, None, None, *(None for _ in ctx.saved_tensors)
        _check_first_order()
        if not torch.compiler.is_compiling() and ctx.grads is not None and upstream.item() == 1.0:
            # Handed over, not shared, so that autograd keeps them without a copy; a second backward makes new ones.
            grads, ctx.grads = ctx.grads, None
            return None, None, None, *grads
        tensors = [z.detach() for z in ctx.saved_tensors]
        _, grads = _value_and_grad_like(tensors, *ctx.call, upstream, ctx.through)
        return None, None, None, *grads


class _EnsembleKDFromRows(torch.autograd.Function):
    """On the GPU: the loss keeps a few numbers a row; backward makes the gradients of them and of the logits.

    The upstream gradient is read on the device.
    """

    @staticmethod
    def forward(ctx, stacked, arguments, weights, *tensors):
        students = tensors[0].unbind(0) if stacked else tensors
        *statistics, row_statistics, counted = torch.ops.oekd_fast.ensemble_kd_value_and_rows(students, *arguments)
        ctx.stacked, ctx.arguments = stacked, arguments
        ctx.weights_dtype = None if weights is None else weights.dtype
        ctx.save_for_backward(row_statistics, counted, *tensors)
        ctx.mark_non_differentiable(*statistics[1:])
        ctx.set_materialize_grads(False)
        return tuple(statistics)

    @staticmethod
    def backward(ctx, upstream, *unused):
        row_statistics, counted, *tensors = ctx.saved_tensors
        if upstream is None:
            return None, None, None, *(None for _ in tensors)
        _check_first_order()
        tensors = [z.detach() for z in tensors]
        grads = [torch.empty_like(z) for z in tensors]
        weights_grad = torch.ops.oekd_fast.ensemble_kd_grad_out(
            tensors[0].unbind(0) if ctx.stacked else tensors,
            *ctx.arguments,
            row_statistics=row_statistics,
            counted=counted,
            grad_scale=upstream,
            weights_grad=ctx.weights_dtype is not None,
            out=grads[0].unbind(0) if ctx.stacked else grads,
        )
        return None, None, weights_grad.to(ctx.weights_dtype) if ctx.weights_dtype else None, *grads


def _check_first_order() -> None:
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "ensemble_kd_loss: the compiled backends are differentiable once, got create_graph=True; "
            "backend='reference' is differentiable twice"
        )


def _ops_of(backend: str, students: Sequence[Tensor]):
    """Where the ops of a compiled backend are: the dispatcher, but for Triton's interpreter on the CPU."""
    return triton_kernels() if backend == "triton" and students[0].is_cpu else torch.ops.oekd_fast


def _value_and_grad_like(
    tensors, backend: str, stacked: bool, arguments: tuple, grad_scale: Tensor | None, through: bool
):
    """Statistics; the gradient of the weights, or None, and those of `tensors`: S of [B, C], or one [S, B, C]."""
    ops = _ops_of(backend, tensors)
    if not stacked and not through:
        *statistics, grads = ops.ensemble_kd_value_and_grad(tensors, *arguments, grad_scale=grad_scale)
        return statistics, (None, *grads)
    grads = [torch.empty_like(z) for z in tensors]
    weights_grad = torch.empty_like(arguments[1]) if through else None
    statistics = ops.ensemble_kd_value_and_grad_out(
        tensors[0].unbind(0) if stacked else tensors,
        *arguments,
        grad_scale=grad_scale,
        out=grads[0].unbind(0) if stacked else grads,
        weights_grad=weights_grad,
    )
    return statistics, (weights_grad, *grads)


def _op_arguments(
    target: Tensor | None, options: KDOptions, ensemble_weights: Tensor | None, teacher_logits: Tensor | None
) -> tuple:
    """What the ops take after the logits."""
    numbers = (options.temperature, options.ce_weight, options.kd_weight, options.ensemble_ce_weight)
    values = None
    held = [number for number in numbers if isinstance(number, Tensor)]
    if held:
        # A number of 0 leaves the ensemble's cross-entropy out, as it is without tensors.
        values = _stacked(numbers if options.ensemble_learns else numbers[:3], held[0].device)
        numbers = (0.0,) * 4  # not read beside `values`
    *first, ensemble_ce_weight = map(float, numbers)
    arguments = (
        target,
        _detached(ensemble_weights),
        *first,
        float(options.label_smoothing),
        options.ignore_index,
        options.reduction == "mean",
        not ensemble_attached(options, teacher_logits),
        values,
    )
    if ensemble_ce_weight == 0 and teacher_logits is None and options.mixing is None:
        return arguments  # the others' defaults, which cost a microsecond to pass
    return (
        *arguments,
        ensemble_ce_weight,
        _detached(teacher_logits),
        _detached(options.mixing),
        options.mixes == "probabilities",
    )


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def _stacked(numbers: Sequence[float | Tensor], device: torch.device) -> Tensor:
    """fp32 [n], made on the device: no host waits. A copy, so that backward sees what the loss saw."""
    return torch.stack(
        [
            number.detach().reshape(()).float()
            if isinstance(number, Tensor)
            else torch.full((), float(number), dtype=torch.float32, device=device)
            for number in numbers
        ]
    )


def _reference_value_and_grad(
    students, target, options, ensemble_weights, teacher_logits, grad_scale, buffers, weights_grad
):
    # Tensors made in inference mode cannot take part in autograd, their copies can.
    def outside(tensor):
        return tensor.clone() if tensor is not None and tensor.is_inference() else tensor

    with torch.inference_mode(False), torch.enable_grad():
        leaves = [outside(z).detach().requires_grad_() for z in students]
        weights = None if ensemble_weights is None else outside(ensemble_weights).detach()
        if weights_grad is not None:
            leaves.append(weights.requires_grad_())
        outside_options = replace(options, mixing=outside(options.mixing))
        output = reference.ensemble_kd(
            leaves[: len(students)], outside(target), outside_options, weights, outside(teacher_logits)
        )
        upstream = None if grad_scale is None else outside(grad_scale).detach().reshape(()).to(output.loss.dtype)
        # Where the loss does not depend on the weights, zeros.
        grads = torch.autograd.grad(output.loss, leaves, upstream, materialize_grads=True)
    if weights_grad is not None:
        *grads, of_weights = grads
        weights_grad.copy_(of_weights)
        grads = tuple(grads)
    if buffers is not None:
        for buffer, grad in zip(buffers, grads, strict=True):
            buffer.copy_(grad)
        grads = tuple(buffers)
    return output._replace(loss=output.loss.detach()), grads
