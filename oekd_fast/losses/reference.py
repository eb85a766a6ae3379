"""The losses in plain PyTorch: their definition, and the fallback on any device.

Notation (Walawalkar, Shen, Savvides, ECCV 2020, arXiv 2011.07449): S students give logits z_j of B rows and C classes.
The ensemble is zE = sum_j w_j z_j, with w_j = 1/S in the paper. A gate has weights w_j for each row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from oekd_fast.losses import transforms
from oekd_fast.losses.calls import EnsembleKDCall, KDOptions
from oekd_fast.losses.checks import DEVICE_SCALARS
from oekd_fast.losses.decoupled import decoupled
from oekd_fast.losses.standardise import standardised

# Pairs of log-probabilities and probabilities [R, C]: one, or for the decoupled divergence two.
Distribution = list[tuple[Tensor, Tensor]]


class EnsembleKDOutput(NamedTuple):
    """Loss and statistics of S students, on the device of the logits.

    The statistics are detached. ``loss``, ``ce``, ``kd`` and ``ensemble_ce`` are float32 (float64 for float64 logits)
    and follow ``reduction``: with "none", they have one value a row in the shape ``rows`` of the class indices, and 0
    for ignored rows. Without a target, ``ce``, ``ensemble_ce`` and ``correct`` are 0.
    """

    loss: Tensor  # [] or rows, differentiable: ce_weight * sum(ce) + kd_weight * sum(kd) + ensemble_ce_weight * ...
    ce: Tensor  # [S] or [S, *rows], cross-entropy of each student
    kd: Tensor  # [S] or [S, *rows], T^2 times the divergence between target and student at temperature T
    ensemble_ce: Tensor  # [] or rows, cross-entropy of the ensemble
    correct: Tensor  # int64 [S + 1], rows whose first largest logit is the (most probable) class: students, ensemble


def ensemble_kd(call: EnsembleKDCall) -> EnsembleKDOutput:
    """Compute the loss of a call; see :func:`oekd_fast.ensemble_kd_loss`.

    Returns:
        Values a row, with ``reduction="none"``, are [R].

    A label outside [0, C) is never used as an index. Its row makes the loss NaN.
    """
    options = call.options
    dtype = torch.float64 if call.dtype == torch.float64 else torch.float32
    temperature, ce_weight, kd_weight, ensemble_ce_weight = (
        _snapshot(getattr(options, name), dtype) for name in DEVICE_SCALARS
    )
    z = [_as_rows(student).to(dtype) for student in call.students]
    external = [_as_rows(teacher.detach()).to(dtype) for teacher in call.teachers]
    gate = call.ensemble_weights
    labels = None if call.target is None else _Labels.of(call, z[0])

    if labels is not None and labels.counted is not None:
        # The logits of ignored rows, which may be NaN, must reach neither the loss nor the gradient.
        counted = labels.counted[:, None]
        z = [student.where(counted, 0.0) for student in z]
        external = [teacher.where(counted, 0.0) for teacher in external]
        if gate is not None and gate.dim() == 2:
            gate = gate.where(counted, 0.0)
    number = z[0].new_ones(z[0].shape[0]).sum() if labels is None else labels.number  # a float would fix a dynamic size
    ensemble = _mix(z, gate)

    def reduce(per_row: Tensor, divisor: Tensor) -> Tensor:
        if labels is not None and labels.counted is not None:
            per_row = per_row.where(labels.counted, 0.0)
        if options.reduction == "none":
            return per_row
        total = per_row.sum()
        if options.reduction == "sum":
            return total
        if call.num_items is not None:
            divisor = torch.as_tensor(call.num_items, device=total.device).detach().reshape(()).to(dtype)
        return (total / divisor.where(divisor > 0, 1.0)).where(divisor > 0, 0.0)

    def distribution(scores: Tensor) -> Distribution:
        if options.standardise_logits:
            scores = standardised(scores)
        scores = _divide(scores, temperature)
        parts = decoupled(scores, labels.indices) if options.divergence == "decoupled" else (scores.log_softmax(dim=1),)
        return [(log_probs, log_probs.exp()) for log_probs in parts]

    def divergence(target: Distribution, student: Tensor) -> Tensor:
        per_row = _divergence(target, distribution(student), options)
        # Rounding can make the divergence slightly negative. The clamp must not change the gradient.
        clamped = (per_row.clamp(min=0.0) - per_row).detach().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        return reduce(per_row + clamped, number) * temperature**2

    def cross_entropy(scores: Tensor) -> Tensor:
        return reduce(labels.cross_entropy(F.log_softmax(scores, dim=1)), labels.total_weight)

    if options.mixing is None:
        teacher = external[0] if external else ensemble.detach() if options.detach_ensemble else ensemble
        teacher = distribution(teacher)
        kd = torch.stack([divergence(teacher, student) for student in z])
    else:
        sources = [scores.detach() for scores in (*z, *external)]
        mixing = options.mixing.to(dtype)
        if options.mixing_space == "logits":
            targets = [distribution(_mix(sources, row)) for row in mixing]
            kd = torch.stack([divergence(*pair) for pair in zip(targets, z, strict=True)])
        else:
            targets = [distribution(scores) for scores in sources]
            pairs = torch.stack([torch.stack([divergence(target, student) for target in targets]) for student in z])
            mixing = mixing.reshape(*mixing.shape, *[1] * (pairs.dim() - 2))  # pairs are [S, S + K] or [S, S + K, R]
            # Entries of 0 exclude a target: 0 * inf would be NaN.
            kd = (mixing * pairs.where((mixing != 0) | pairs.isfinite(), 0.0)).sum(dim=1)
    loss = kd_weight * kd.sum(dim=0)
    if labels is None:
        ce, ensemble_ce = torch.zeros_like(kd), torch.zeros_like(loss)
        correct = torch.zeros(len(z) + 1, dtype=torch.int64, device=kd.device)
    else:
        ce = torch.stack([cross_entropy(student) for student in z])
        ensemble_ce = cross_entropy(ensemble if options.ensemble_learns else ensemble.detach())
        correct = torch.stack([labels.count_correct(scores) for scores in (*z, ensemble)])
        loss = loss + ce_weight * ce.sum(dim=0)
        if options.ensemble_learns:
            loss = loss + ensemble_ce_weight * ensemble_ce
    return EnsembleKDOutput(loss, ce.detach(), kd.detach(), ensemble_ce.detach(), correct)


def _as_rows(tensor: Tensor) -> Tensor:
    """Return logits [R, C] or [O, C, I] as [R, C]."""
    return tensor if tensor.dim() == 2 else tensor.movedim(1, -1).flatten(0, 1)


@dataclass(frozen=True)
class _Labels:
    """The labels of a call.

    Attributes:
        indices: int64 [R], where valid, else some class; the most probable class for probabilities.
        probabilities: [R, C], or None for class indices.
        counted: bool [R], or None if all rows count.
        valid: bool [R], whether an index is a class; None for probabilities.
        number: rows that count.
        total_weight: divisor of the cross-entropy's mean: of the labels' weights where they are indices, else `number`.
        weight: class weights [C] or None.
        smoothing: label smoothing.
    """

    indices: Tensor
    probabilities: Tensor | None
    counted: Tensor | None
    valid: Tensor | None
    number: Tensor
    total_weight: Tensor
    weight: Tensor | None
    smoothing: float

    @classmethod
    def of(cls, call: EnsembleKDCall, like: Tensor) -> _Labels:
        """Read the labels of a call; `like` is a student [R, C] in the dtype of the computation."""
        options = call.options
        weight = None if options.weight is None else options.weight.to(like.dtype)
        if call.has_probabilities:
            probabilities = _as_rows(call.target).to(like.dtype)
            number = like.new_ones(like.shape[0]).sum()
            return cls(
                probabilities.argmax(dim=1), probabilities, None, None, number, number, weight, options.label_smoothing
            )
        target = call.target.reshape(-1).long()  # ignore_index may not fit a narrow dtype
        counted = target != options.ignore_index
        valid = (target >= 0) & (target < like.shape[1])
        indices = target.clamp(0, like.shape[1] - 1)
        number = counted.sum().to(like.dtype)
        total = number if weight is None else weight[indices].where(counted, 0.0).sum()
        return cls(indices, None, counted, valid, number, total, weight, options.label_smoothing)

    def cross_entropy(self, log_probs: Tensor) -> Tensor:
        """Cross-entropy of each row, [R]; terms whose label is 0 are 0 even where the log probability is -inf."""
        if self.probabilities is None:
            loss = -log_probs.gather(1, self.indices[:, None]).squeeze(1)
            if self.weight is not None:
                weight = self.weight[self.indices]
                loss = (weight * loss).where(weight != 0, 0.0)
        else:
            labels = self.probabilities if self.weight is None else self.probabilities * self.weight
            loss = -(labels * log_probs.where(labels != 0, 0.0)).sum(dim=1)
        if self.smoothing > 0.0:
            if self.weight is None:
                even = -log_probs.mean(dim=1)
            else:
                even = -(self.weight * log_probs.where(self.weight != 0, 0.0)).mean(dim=1)
            loss = (1.0 - self.smoothing) * loss + self.smoothing * even
        return loss if self.valid is None else loss.where(self.valid, float("nan"))

    def count_correct(self, scores: Tensor) -> Tensor:
        hits = scores.argmax(dim=1) == self.indices
        if self.valid is not None:
            hits = hits & self.valid & self.counted
        return hits.sum()


def _divergence(target: Distribution, student: Distribution, options: KDOptions) -> Tensor:
    """Divergence of each row, [R]."""
    if options.divergence == "decoupled":
        (of_label, log_label), (of_others, log_others) = ((t, q[0]) for t, q in zip(target, student, strict=True))
        return _kl(of_label, log_label) + options.beta * _kl(of_others, log_others)
    (target,), (student,) = target, student
    if options.divergence == "forward":
        return _kl(target, student[0])
    if options.divergence == "reverse":
        return _kl(student, target[0])
    beta = options.beta
    given = (target[1] > 0) | (student[1] > 0)  # where both are 0, the mixture's gradient would be NaN
    mixture = torch.logaddexp(
        target[0].where(given, 0.0) + math.log(beta), student[0].where(given, 0.0) + math.log1p(-beta)
    )
    return beta * _kl(target, mixture) + (1.0 - beta) * _kl(student, mixture)


def _kl(p: tuple[Tensor, Tensor], log_q: Tensor) -> Tensor:
    log_p, probs = p
    # Where p is 0, so is p (log p - log q). This avoids -inf - -inf.
    return (probs * (log_p - log_q).where(probs > 0, 0.0)).sum(dim=1)


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
        output = ensemble_kd(
            replace(
                call,
                students=students,
                target=usable(call.target),
                options=replace(call.options, mixing=usable(call.options.mixing), weight=usable(call.options.weight)),
                ensemble_weights=weights,
                teachers=tuple(usable(teacher) for teacher in call.teachers),
            )
        )
        upstream = torch.ones_like(output.loss)
        if grad_scale is not None:
            upstream = upstream * usable(grad_scale).detach().reshape(-1).to(upstream.dtype)
            upstream = upstream.reshape(output.loss.shape)
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
        output = ensemble_kd(replace(call, students=students))
        loss = output.loss if grad_scale is None else output.loss * grad_scale.reshape(-1)
        return loss.sum(), output

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
