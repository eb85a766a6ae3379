"""The losses in plain PyTorch: their definition, and the fallback on any device.

Notation (Walawalkar, Shen, Savvides, ECCV 2020, arXiv 2011.07449): S students give logits z_j of B rows and C classes.
The ensemble is zE = sum_j w_j z_j, with w_j = 1/S in the paper. A gate has weights w_j for each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from oekd_fast.losses import transforms
from oekd_fast.losses.calls import EnsembleKDCall, KDOptions
from oekd_fast.losses.checks import DEVICE_SCALARS


class EnsembleKDOutput(NamedTuple):
    """Loss and statistics of S students, on the device of the logits.

    The statistics are detached. ``loss``, ``ce``, ``kd`` and ``ensemble_ce`` are float32 (float64 for float64 logits)
    and follow ``reduction``. Without a target, ``ce``, ``ensemble_ce`` and ``correct`` are 0.
    """

    loss: Tensor  # scalar, differentiable: ce_weight * sum(ce) + kd_weight * sum(kd) + ensemble_ce_weight * ensemble_ce
    ce: Tensor  # [S] cross-entropy of each student
    kd: Tensor  # [S] T^2 KL(target || student) at temperature T
    ensemble_ce: Tensor  # scalar, cross-entropy of the ensemble
    correct: Tensor  # int64 [S + 1] rows whose first largest logit is the target: students, then ensemble


def ensemble_kd(
    logits: Sequence[Tensor],
    target: Tensor | None,
    options: KDOptions,
    ensemble_weights: Tensor | None = None,
    teachers: Sequence[Tensor] = (),
) -> EnsembleKDOutput:
    """Compute the loss of checked arguments; see :func:`oekd_fast.ensemble_kd_loss`.

    A label outside [0, C) is never used as an index. Its row makes the loss NaN.
    """
    dtype = torch.float64 if logits[0].dtype == torch.float64 else torch.float32
    temperature, ce_weight, kd_weight, ensemble_ce_weight = (
        _snapshot(getattr(options, name), dtype) for name in DEVICE_SCALARS
    )
    z = [student.to(dtype) for student in logits]
    external = [teacher.detach().to(dtype) for teacher in teachers]
    rows, classes = z[0].shape

    counted = valid = None
    if target is None:
        number = z[0].new_ones(rows).sum()  # float(rows) would fix a dynamic size
    else:
        counted = target != options.ignore_index
        valid = (target >= 0) & (target < classes)
        number = counted.sum().to(dtype)
        # The logits of ignored rows, which may be NaN, must reach neither the loss nor the gradient.
        z = [student.where(counted[:, None], 0.0) for student in z]
        external = [teacher.where(counted[:, None], 0.0) for teacher in external]
        if ensemble_weights is not None and ensemble_weights.dim() == 2:
            ensemble_weights = ensemble_weights.where(counted[:, None], 0.0)

    ensemble = _mix(z, ensemble_weights)

    def reduce(per_row: Tensor) -> Tensor:
        if counted is not None:
            per_row = per_row.where(counted, 0.0)
        total = per_row.sum()
        return total / number.clamp(min=1.0) if options.reduction == "mean" else total

    def cross_entropy(log_probs: Tensor) -> Tensor:
        index = target.clamp(0, classes - 1)
        loss = -log_probs.gather(1, index[:, None]).squeeze(1)
        if options.label_smoothing > 0.0:
            smooth = -log_probs.mean(dim=1)
            loss = (1.0 - options.label_smoothing) * loss + options.label_smoothing * smooth
        return reduce(loss.where(valid, float("nan")))

    def target_of(scores: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = F.log_softmax(_divide(scores, temperature), dim=1)
        return log_probs, log_probs.exp()

    def divergence(target: tuple[Tensor, Tensor], student: Tensor) -> Tensor:
        teacher_log_probs, teacher_probs = target
        student_log_probs = F.log_softmax(_divide(student, temperature), dim=1)
        # Where the teacher's probability is 0, so is 0 * (log 0 - log q). This avoids -inf - -inf.
        gap = (teacher_log_probs - student_log_probs).where(teacher_probs > 0, 0.0)
        kl = (teacher_probs * gap).sum(dim=1)
        # Rounding can make the divergence slightly negative. The clamp must not change the gradient.
        kl = kl + (kl.clamp(min=0.0) - kl).detach().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        return reduce(kl) * temperature**2

    def count_correct(scores: Tensor) -> Tensor:
        return ((scores.argmax(dim=1) == target) & counted).sum()

    if options.mixing is None:
        teacher = external[0] if external else ensemble.detach() if options.detach_ensemble else ensemble
        teacher = target_of(teacher)
        kd = torch.stack([divergence(teacher, student) for student in z])
    else:
        sources = [scores.detach() for scores in (*z, *external)]
        mixing = options.mixing.to(dtype)
        if options.mixing_space == "logits":
            targets = [target_of(_mix(sources, row)) for row in mixing]
            kd = torch.stack([divergence(*pair) for pair in zip(targets, z, strict=True)])
        else:
            targets = [target_of(scores) for scores in sources]
            pairs = torch.stack([torch.stack([divergence(target, student) for target in targets]) for student in z])
            # Entries of 0 exclude a target: 0 * inf would be NaN.
            kd = (mixing * pairs.where((mixing != 0) | pairs.isfinite(), 0.0)).sum(dim=1)
    loss = kd_weight * kd.sum()
    if target is None:
        ce, ensemble_ce = torch.zeros_like(kd), torch.zeros_like(loss)
        correct = torch.zeros(len(z) + 1, dtype=torch.int64, device=kd.device)
    else:
        ce = torch.stack([cross_entropy(F.log_softmax(student, dim=1)) for student in z])
        learning = ensemble if options.ensemble_learns else ensemble.detach()
        ensemble_ce = cross_entropy(F.log_softmax(learning, dim=1))
        correct = torch.stack([count_correct(scores) for scores in (*z, ensemble)])
        loss = loss + ce_weight * ce.sum()
        if options.ensemble_learns:
            loss = loss + ensemble_ce_weight * ensemble_ce
    return EnsembleKDOutput(loss, ce.detach(), kd.detach(), ensemble_ce.detach(), correct)


def ensemble_kd_value_and_grad(
    call: EnsembleKDCall, grad_scale: Tensor | None, out: Sequence[Tensor] | None, weights_grad: Tensor | None
) -> tuple[EnsembleKDOutput, tuple[Tensor, ...]]:
    """Loss and gradients by autograd; see :func:`oekd_fast.ensemble_kd_value_and_grad`."""
    if transforms.in_torch_func() or call.has_tangent:
        return _transformed_value_and_grad(call, grad_scale, out, weights_grad)

    # Tensors made in inference mode cannot take part in autograd, but their copies can.
    def usable(tensor):
        return tensor.clone() if tensor is not None and tensor.is_inference() else tensor

    with torch.inference_mode(False), torch.enable_grad():
        students = [usable(z).detach().requires_grad_() for z in call.students]
        leaves = list(students)
        weights = None if call.ensemble_weights is None else usable(call.ensemble_weights).detach()
        if weights_grad is not None:
            leaves.append(weights.requires_grad_())
        options = replace(call.options, mixing=usable(call.options.mixing))
        teachers = [usable(teacher) for teacher in call.teachers]
        output = ensemble_kd(students, usable(call.target), options, weights, teachers)
        upstream = None if grad_scale is None else usable(grad_scale).detach().reshape(()).to(output.loss.dtype)
        # The gradient of weights on which the loss does not depend is 0.
        grads = torch.autograd.grad(output.loss, leaves, upstream, materialize_grads=True)
    if weights_grad is not None:
        weights_grad.copy_(grads[-1])
        grads = grads[:-1]
    if out is not None:
        for buffer, grad in zip(out, grads, strict=True):
            buffer.copy_(grad)
        grads = tuple(out)
    return output._replace(loss=output.loss.detach()), grads


def _transformed_value_and_grad(
    call: EnsembleKDCall, grad_scale: Tensor | None, out: Sequence[Tensor] | None, weights_grad: Tensor | None
) -> tuple[EnsembleKDOutput, tuple[Tensor, ...]]:
    """Loss and gradients by ``torch.func``, so that other transforms apply to them."""
    for name, buffer in (("out", out), ("weights_grad", weights_grad)):
        if buffer is not None:
            raise ValueError(f"{name}: expected None inside transforms and with forward-mode AD, got a buffer")

    def loss(students):
        output = ensemble_kd(students, call.target, call.options, call.ensemble_weights, call.teachers)
        return output.loss if grad_scale is None else output.loss * grad_scale.reshape(()), output

    grads, (_, output) = torch.func.grad_and_value(loss, has_aux=True)(tuple(call.students))
    return output, grads


def _snapshot(value: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    """Copy a number that is a tensor, so that backward uses the value of the forward pass if the tensor changes."""
    return value.to(dtype, copy=True).reshape(()) if isinstance(value, Tensor) else value


def _divide(scores: Tensor, temperature: float | Tensor) -> Tensor:
    if not isinstance(temperature, Tensor):
        return scores / temperature
    # A logit of -inf does not depend on the temperature, whose gradient would be 0 * inf.
    finite = scores.isfinite()
    return (scores.where(finite, 0.0) / temperature).where(finite, scores)


def _mix(z: Sequence[Tensor], weights: Tensor | None) -> Tensor:
    """Compute sum_j w_j z_j, [B, C], for weights [S], or a gate [B, S]; None stands for the mean."""
    if weights is None:
        return torch.stack(tuple(z)).mean(dim=0)
    terms = []
    for weight, student in zip(weights.to(z[0].dtype).unbind(-1), z, strict=True):
        if weight.dim():
            weight = weight[:, None]
        # Students with weight 0 are excluded, even if their logits are -inf: 0 * -inf would be NaN. For other weights,
        # their gradient would be NaN at such a logit; it is 0, since the mixture's probability there is 0.
        finite = student.isfinite()
        term = weight * student.where(finite, 0.0)
        terms.append(term.where(finite | (weight == 0), (weight * student).detach()))
    return torch.stack(terms).sum(dim=0)


def feature_kd(
    student_maps: Sequence[Tensor], teacher_map: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> Tensor:
    """Sum the mean squared errors between each student's adapted map and the detached map of the pseudo teacher.

    See :func:`oekd_fast.feature_kd_loss`.
    """
    teacher = teacher_map.detach()
    losses = [
        _mean_squared_error(F.conv2d(student, weight.view(*weight.shape[:2], 1, 1), bias), teacher)
        for student, weight, bias in zip(student_maps, weights, biases, strict=True)
    ]
    return torch.stack(losses).sum() if losses else teacher.new_zeros((), dtype=torch.float32)


def _mean_squared_error(x: Tensor, y: Tensor) -> Tensor:
    if not transforms.in_torch_func():
        return F.mse_loss(x, y)
    # The forward derivative of the backward pass of F.mse_loss fails in torch.func.
    dtype = torch.promote_types(x.dtype, torch.float32)
    return (x.to(dtype) - y.to(dtype)).square().mean()
