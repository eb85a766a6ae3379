"""The public functions of the ensemble distillation loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from oekd_fast.losses import checks, prepared, reference, transforms
from oekd_fast.losses.autograd import differentiable_loss
from oekd_fast.losses.backends import REFERENCE, Backend, choose_backend
from oekd_fast.losses.calls import EnsembleKDCall, KDOptions, detached
from oekd_fast.losses.model_outputs import logits_of
from oekd_fast.losses.reference import EnsembleKDOutput


def ensemble_kd_loss(
    logits: Any,
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
    class_dim: int = 1,
    weight: Tensor | None = None,
    num_items: float | Tensor | None = None,
    divergence: str = "forward",
    beta: float = 0.5,
    standardise_logits: bool = False,
    backend: str = "auto",
    validate: bool = False,
) -> EnsembleKDOutput:
    """Compute the loss of S students that learn from labels and from their ensemble (ECCV 2020, arXiv 2011.07449)::

        loss = ce_weight * sum_j CE(z_j, y)  +  kd_weight * sum_j T^2 D(softmax(zE/T), softmax(z_j/T))
               +  ensemble_ce_weight * CE(zE, y)
        zE   = sum_j w_j z_j
        D    = KL(t || q), the Kullback-Leibler divergence, or another by ``divergence``

    With ``teacher_logits`` or ``mixing``, the students learn from other targets than the ensemble. Related objectives
    are special cases::

        Hinton, Vinyals, Dean 2015      teacher_logits=v
        born-again (Furlanello 2018)    teacher_logits=v of the previous generation, temperature=1
        mutual learning (Zhang 2018)    mixing=W, mixing_space="probabilities", temperature=1;
                                        W_ji = 1/(S-1), W_jj = 0
        codistillation (Anil 2018)      the same W: the gradients equal those of the other students' mean prediction
        ONE (Lan, Zhu, Gong 2018)       ensemble_weights=gate [B, S], ensemble_ce_weight=1, temperature=3
        independent students            kd_weight=0

    Args:
        logits: S tensors [B, C], or one [S, B, C]; float32, float16 or bfloat16 (float64: reference backend only), with
            any strides. Logits of more dimensions, such as [B, C, H, W], have one row for each position in the other
            dimensions. They are not copied unless their rows need more than two strides. Also an object with the
            attribute ``logits``, such as ``EnsembleOutput``, or a mapping with that key.
        target: class indices in [0, C), of any integer dtype: [B], or in general the shape of a student's logits
            without the class dimension. Rows whose target equals ``ignore_index`` are ignored. Or probabilities:
            floating, with the shape of a student's logits, >= 0, and a sum of 1 within 0.01 in each row. None is valid
            only if ``ce_weight`` and ``ensemble_ce_weight`` are 0, and leaves the distillation term alone.
        temperature: T > 0. The distillation term carries the factor T^2. The temperature and the three weights are
            numbers, or tensors with one element and any floating dtype on the device of the logits. Tensors are read
            there at each call and at each replay of a graph, as float32 (float64 for float64 logits). The backward
            pass uses the values that the loss has read. Tensors that require a gradient, such as a learned temperature,
            get it from the reference backend; the others refuse them while gradients are enabled.
        ce_weight: weight of the students' cross-entropies.
        kd_weight: weight of the distillation terms.
        ensemble_weights: w, floating [S], or a gate [B, S] with weights for each row; None stands for 1/S each.
            Students with weight 0 are excluded, even if their logits are -inf. The weights are differentiable where the
            loss depends on them with gradients: through an attached target, and through the ensemble's cross-entropy.
        detach_ensemble: True, as in the paper, stops gradients through the ensemble as a target. False lets them flow
            to the logits and to ``ensemble_weights``; on the CPU, the reference backend computes this.
        ensemble_ce_weight: weight of the ensemble's own cross-entropy, whose gradient reaches the logits and
            ``ensemble_weights`` regardless of ``detach_ensemble``.
        teacher_logits: logits of external teachers, with any floating dtype and strides, never differentiated. One
            teacher [B, C] replaces the ensemble: the target of every student is softmax(teacher_logits / T). K
            teachers, as one tensor [K, B, C] or K tensors [B, C], need ``mixing``. The statistics of the ensemble do
            not depend on teachers.
        mixing: W, a floating tensor [S, S + K], differentiable as the temperature is. Row j gives the weights of the S
            students, which are detached, and then of the K external teachers in the target of student j. A weight of 0
            excludes a student or teacher, even if its logits are -inf. Not combined with ``detach_ensemble=False`` or a
            gate.
        mixing_space: "logits": kd_j = T^2 KL(softmax(sum_i W_ji z_i / T) || softmax(z_j / T)). "probabilities":
            kd_j = T^2 sum_i W_ji KL(softmax(z_i / T) || softmax(z_j / T)); if a row of W sums to 1, its gradients equal
            those of the target sum_i W_ji softmax(z_i / T).
        label_smoothing: a number in [0, 1] for the cross-entropies, as in ``torch.nn.functional.cross_entropy``.
        ignore_index: the label of rows that are ignored.
        reduction: "mean" over the rows that are not ignored, "sum", or "none" for one loss a row, differentiable, in
            the shape of the class indices.
        class_dim: the dimension of the classes in a student's logits: 1, as in ``torch.nn.functional.cross_entropy``,
            or -1 for sequences [B, T, C].
        weight: class weights [C], floating, >= 0, for the cross-entropies, with the meaning that they have in
            ``torch.nn.functional.cross_entropy`` under each reduction: with "mean" and class indices, the
            cross-entropies are divided by the sum of the labels' weights. The distillation term has no class weights.
        num_items: a number, or a tensor of one element on the device of the logits, > 0, which replaces the divisors of
            all means; for ``reduction="mean"``. With the number of rows of several micro-batches, the sum of their
            losses is the loss of the whole batch.
        divergence: D of the target's distribution t and a student's q. "forward": KL(t || q). "reverse": KL(q || t).
            "js": beta KL(t || m) + (1 - beta) KL(q || m) with m = beta t + (1 - beta) q, the generalised Jensen-Shannon
            divergence (Agarwal et al., ICLR 2024, arXiv 2306.13649, equation 1). "decoupled": KL(b_t || b_q) +
            beta KL(t' || q'), where b is the distribution of the label's class against all other classes, and t' and q'
            are the softmaxes over the other classes (Zhao et al., CVPR 2022, arXiv 2203.08679); for class indices only,
            by the native and the reference backend.
        beta: the number in (0, 1) of the divergence "js", or the number >= 0 of "decoupled"; others ignore it.
        standardise_logits: True puts (z - mean z) / sd z, over the classes, in place of the logits of each student and
            each target in the distillation terms (Sun et al., CVPR 2024, arXiv 2403.01993, algorithm 1, with the
            population's standard deviation). A mixture of logits is standardised as one target, mixed probabilities
            come from targets that are standardised each. Logits of -inf count neither in the mean nor in sd, and
            stay. A row whose sd is at most 1e-7 becomes zeros without a gradient. The cross-entropies are those of
            the logits as they are.
        backend: "auto" takes the compiled kernel of the device if it is available and supports the call, and the
            reference otherwise, as in transforms of ``torch.func``, for dual tensors of forward-mode AD, and for a
            temperature, ``ce_weight``, ``kd_weight``, ``ensemble_ce_weight``, ``mixing`` or probabilities that require
            a gradient. "reference", "native" (CPU) or "triton" (CUDA) takes exactly that backend.
        validate: check the labels, the class weights, and the numbers that are tensors, on any device before the loss
            is computed. The host waits for the device. Calls in ``torch.compile`` or in transforms skip this check.

    Returns:
        EnsembleKDOutput: ``loss`` is differentiable (once by the compiled backends); the statistics are detached. All
        stay on the device of the logits. If no row counts, the loss and the gradients are 0.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what was given. Labels out of range raise on
            the CPU, and with ``validate`` on any device. On other devices, rows with such a label make the loss and
            ``ce`` NaN, ``kd`` stays finite, and the label is never used as an index. Temperatures and weights in
            tensors follow the same rule: if they are not checked, a value that is not finite makes the loss NaN or
            infinite, a temperature of 0 makes ``kd`` and the loss NaN, and a negative temperature gives meaningless
            numbers.
        ValueError: the named backend does not support the call; the message lists what each backend answers.
        RuntimeError: the named backend is unavailable.
    """
    options = (
        temperature,
        ce_weight,
        kd_weight,
        detach_ensemble,
        label_smoothing,
        ignore_index,
        reduction,
        ensemble_ce_weight,
        mixing,
        mixing_space,
        class_dim,
        weight,
        divergence,
        beta,
        standardise_logits,
    )
    beside = ensemble_weights, teacher_logits, num_items, backend, validate
    return loss_of(logits, target, options, beside)


def loss_of(
    logits: Any, target: Tensor | None, options: tuple, beside: tuple, checked: KDOptions | None = None
) -> EnsembleKDOutput:
    """Compute :func:`ensemble_kd_loss`.

    Args:
        options: the fields of :class:`KDOptions` in their order.
        beside: the arguments ensemble_weights, teacher_logits, num_items, backend and validate.
        checked: the options, if they have been checked.
    """
    logits = logits_of(logits)
    statistics = prepared.run(False, logits, target, options, beside)
    if statistics is not None:
        return EnsembleKDOutput._make(statistics)
    ensemble_weights, teacher_logits, num_items, backend, validate = beside
    call = EnsembleKDCall.of(
        logits,
        target,
        KDOptions(*options) if checked is None else checked,
        ensemble_weights=ensemble_weights,
        teacher_logits=teacher_logits,
        num_items=num_items,
    )
    chosen = _choose(call, backend, validate)
    output = _loss(call, chosen)
    prepared.remember(False, logits, target, options, beside, call, chosen)
    return output


def call_loss(call: EnsembleKDCall, *, backend: str, validate: bool) -> EnsembleKDOutput:
    """Compute :func:`ensemble_kd_loss` of a call that has been checked."""
    return _loss(call, _choose(call, backend, validate))


def _loss(call: EnsembleKDCall, chosen: Backend) -> EnsembleKDOutput:
    output = (
        reference.ensemble_kd(call) if chosen is REFERENCE else EnsembleKDOutput(*differentiable_loss(call, chosen))
    )
    return _with_shape_of_rows(output, call)


def _with_shape_of_rows(output: EnsembleKDOutput, call: EnsembleKDCall) -> EnsembleKDOutput:
    """Give values a row the shape of the class indices."""
    if call.layout is None or call.options.reduction != "none":
        return output
    *values, correct = output
    return EnsembleKDOutput(*map(call.layout.restore_rows, values), correct)


def ensemble_kd_value_and_grad(
    logits: Any,
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
    class_dim: int = 1,
    weight: Tensor | None = None,
    num_items: float | Tensor | None = None,
    divergence: str = "forward",
    beta: float = 0.5,
    standardise_logits: bool = False,
    grad_scale: Tensor | None = None,
    out: Sequence[Tensor] | Tensor | None = None,
    weights_grad: Tensor | None = None,
    backend: str = "auto",
    validate: bool = False,
) -> tuple[EnsembleKDOutput, tuple[Tensor, ...]]:
    """Compute the loss and its gradients for the logits at once, outside autograd.

    Args:
        logits, ..., validate: arguments of :func:`ensemble_kd_loss`.
        grad_scale: tensor with one element, a loss scale, which multiplies the gradients but not the loss. With
            ``reduction="none"`` also one element a row, in the shape of the class indices. The gradients are then those
            of the sum of the rows' losses, each times its factor.
        out: S buffers with the shape and dtype of the logits, or one stacked tensor; overwritten with the gradients.
        weights_grad: buffer with the shape and dtype of ``ensemble_weights``; overwritten with their gradient.

    Returns:
        The statistics, and S gradients in the dtype of the logits: the buffers of ``out`` if they are given.

    Raises:
        ValueError, TypeError, RuntimeError: as :func:`ensemble_kd_loss`; also for buffers that do not fit.
    """
    options = (
        temperature,
        ce_weight,
        kd_weight,
        detach_ensemble,
        label_smoothing,
        ignore_index,
        reduction,
        ensemble_ce_weight,
        mixing,
        mixing_space,
        class_dim,
        weight,
        divergence,
        beta,
        standardise_logits,
    )
    beside = ensemble_weights, teacher_logits, num_items, backend, validate
    logits = logits_of(logits)
    plain = grad_scale is None and out is None and weights_grad is None
    if plain and (results := prepared.run(True, logits, target, options, beside)) is not None:
        statistics = len(EnsembleKDOutput._fields)
        return EnsembleKDOutput._make(results[:statistics]), results[statistics:]
    call = EnsembleKDCall.of(
        logits,
        target,
        KDOptions(*options),
        ensemble_weights=ensemble_weights,
        teacher_logits=teacher_logits,
        num_items=num_items,
    )
    layout = call.layout
    shape = call.students[0].shape if layout is None else layout.shape
    if grad_scale is not None:
        per_row = call.rows_shape if reduction == "none" else None
        checks.check_grad_scale(grad_scale, call.device, rows=per_row)
    buffers = flat = None
    if out is not None:
        flat = buffers = checks.check_out(out, len(call.students), shape, call.dtype, call.device)
        if layout is not None:
            flat = _flat_buffers(buffers, call)
    flat_weights_grad = None
    if weights_grad is not None:
        checks.check_weights_grad(weights_grad, ensemble_weights)
        flat_weights_grad = _flat_gate(weights_grad, call)
    if names := call.learned_options:
        raise ValueError(
            f"{names[0]}: expected a tensor that requires no gradient, since ensemble_kd_value_and_grad returns none "
            "for it, got requires_grad=True; ensemble_kd_loss with backend='reference' supports this"
        )
    chosen = _choose(call, backend, validate)
    output, grads = _value_and_grad(call, chosen, grad_scale, flat, flat_weights_grad)
    if plain:
        prepared.remember(True, logits, target, options, beside, call, chosen)
    if buffers is not None:
        grads = tuple(buffers)
    elif layout is not None:
        grads = tuple(map(layout.restore, grads))
    return _with_shape_of_rows(output, call), grads


def call_value_and_grad(
    call: EnsembleKDCall, grad_scale: Tensor | None, buffers: Sequence[Tensor], backend: str, validate: bool
) -> tuple[EnsembleKDOutput, tuple[Tensor, ...]]:
    """Compute :func:`ensemble_kd_value_and_grad` of a call of plain logits [R, C] that has been checked.

    Args:
        buffers: S tensors as the logits, overwritten with the gradients; they may be the logits themselves.
    """
    return _value_and_grad(call, _choose(call, backend, validate), grad_scale, buffers, None)


def _value_and_grad(
    call: EnsembleKDCall,
    chosen: Backend,
    grad_scale: Tensor | None,
    buffers: Sequence[Tensor] | None,
    weights_grad: Tensor | None,
) -> tuple[EnsembleKDOutput, tuple[Tensor, ...]]:
    """Compute :func:`ensemble_kd_value_and_grad` with all tensors in the flat form of the call."""
    if chosen is REFERENCE:
        return reference.ensemble_kd_value_and_grad(call, grad_scale, buffers, weights_grad)
    ops, kwargs = chosen.ops(call), call.op_kwargs()
    students = [z.detach() for z in call.students]
    if grad_scale is not None and grad_scale.numel() != 1:
        grad_scale = grad_scale.reshape(-1)
    kwargs["grad_scale"] = detached(grad_scale)
    if buffers is None and weights_grad is None:
        *statistics, grads = ops.ensemble_kd_value_and_grad(students, **kwargs)
        return EnsembleKDOutput(*statistics), tuple(grads)
    if buffers is None:
        buffers = [torch.empty_like(z) for z in students]
    statistics = ops.ensemble_kd_value_and_grad_out(students, **kwargs, out=buffers, weights_grad=weights_grad)
    return EnsembleKDOutput(*statistics), tuple(buffers)


def _flat_buffers(buffers: Sequence[Tensor], call: EnsembleKDCall) -> list[Tensor]:
    """Return views of the buffers in the flat form of the call."""
    for j, buffer in enumerate(buffers):
        if not call.layout.fits(buffer):
            raise ValueError(
                f"out[{j}]: expected strides as those of logits[{j}], so that one view fits both, got "
                f"{list(buffer.stride())}"
            )
    return [call.layout.flatten(buffer) for buffer in buffers]


def _flat_gate(weights_grad: Tensor, call: EnsembleKDCall) -> Tensor:
    """Return a view of a gate's gradient buffer, [R, S]; the gradient of weights [S] stays as it is."""
    if call.layout is None or weights_grad.dim() == 1:
        return weights_grad
    try:
        return weights_grad.view(-1, len(call.students))
    except RuntimeError as error:
        raise ValueError(
            f"weights_grad: expected a contiguous tensor, got strides {list(weights_grad.stride())}"
        ) from error


def _choose(call: EnsembleKDCall, name: str, validate: bool) -> Backend:
    """Choose the backend of a call, then check the labels and the numbers that are tensors where that is due."""
    backend = choose_backend(name, call)
    if not transforms.hides_values(call.students[0]):
        # Without `validate` the host waits for no GPU.
        cheap = call.device.type == "cpu" and not backend.checks_contents
        if validate or cheap:
            call.check_contents()
    return backend
