"""The public functions of the ensemble distillation loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from oekd_fast.losses import checks, reference
from oekd_fast.losses.autograd import differentiable_loss
from oekd_fast.losses.backends import REFERENCE, Backend, choose_backend
from oekd_fast.losses.calls import EnsembleKDCall, KDOptions, detached
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
    teacher_logits: Sequence[Tensor] | Tensor | None = None,
    mixing: Tensor | None = None,
    mixing_space: str = "logits",
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
        teacher_logits: logits of external teachers, with any floating dtype and strides, never differentiated. One
            teacher [B, C] replaces the ensemble: the target of every student is softmax(teacher_logits / T). K
            teachers, as one tensor [K, B, C] or K tensors [B, C], need ``mixing``. The statistics of the ensemble do
            not depend on teachers.
        mixing: W, a floating tensor [S, S + K], never differentiated. Row j gives the weights of the S students, which
            are detached, and then of the K external teachers in the target of student j. A weight of 0 excludes a
            student or teacher, even if its logits are -inf. Not combined with ``detach_ensemble=False`` or a gate.
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
        temperature=temperature,
        ce_weight=ce_weight,
        kd_weight=kd_weight,
        detach_ensemble=detach_ensemble,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        reduction=reduction,
        ensemble_ce_weight=ensemble_ce_weight,
        mixing=mixing,
        mixing_space=mixing_space,
    )
    call = EnsembleKDCall.of(logits, target, options, ensemble_weights=ensemble_weights, teacher_logits=teacher_logits)
    return loss_of(call, backend=backend, validate=validate)


def loss_of(call: EnsembleKDCall, *, backend: str, validate: bool) -> EnsembleKDOutput:
    """Compute :func:`ensemble_kd_loss` of a call that has been checked."""
    chosen = _choose(call, backend, validate)
    if chosen is REFERENCE:
        return reference.ensemble_kd(call.students, call.target, call.options, call.ensemble_weights, call.teachers)
    return EnsembleKDOutput(*differentiable_loss(call, chosen))


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
    teacher_logits: Sequence[Tensor] | Tensor | None = None,
    mixing: Tensor | None = None,
    mixing_space: str = "logits",
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
        temperature=temperature,
        ce_weight=ce_weight,
        kd_weight=kd_weight,
        detach_ensemble=detach_ensemble,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        reduction=reduction,
        ensemble_ce_weight=ensemble_ce_weight,
        mixing=mixing,
        mixing_space=mixing_space,
    )
    call = EnsembleKDCall.of(logits, target, options, ensemble_weights=ensemble_weights, teacher_logits=teacher_logits)
    if grad_scale is not None:
        checks.check_grad_scale(grad_scale, call.device)
    buffers = None if out is None else checks.check_out(out, call.students)
    if weights_grad is not None:
        checks.check_weights_grad(weights_grad, ensemble_weights)
    chosen = _choose(call, backend, validate)
    if chosen is REFERENCE:
        return reference.ensemble_kd_value_and_grad(call, grad_scale, buffers, weights_grad)
    ops, kwargs = chosen.ops(call), call.op_kwargs()
    students = [z.detach() for z in call.students]
    kwargs["grad_scale"] = detached(grad_scale)
    if buffers is None and weights_grad is None:
        *statistics, grads = ops.ensemble_kd_value_and_grad(students, **kwargs)
        return EnsembleKDOutput(*statistics), tuple(grads)
    if buffers is None:
        buffers = [torch.empty_like(z) for z in students]
    statistics = ops.ensemble_kd_value_and_grad_out(students, **kwargs, out=buffers, weights_grad=weights_grad)
    return EnsembleKDOutput(*statistics), tuple(buffers)


def _choose(call: EnsembleKDCall, name: str, validate: bool) -> Backend:
    """Choose the backend of a call, then check the labels and the numbers that are tensors where that is due."""
    backend = choose_backend(name, call)
    if not torch.compiler.is_compiling():
        # Without `validate` the host waits for no GPU.
        cheap = call.device.type == "cpu" and not backend.checks_contents
        if validate or cheap:
            call.check_contents()
    return backend
