"""The loss in plain PyTorch, with the arguments of torch.nn.functional.cross_entropy, as truth and as criterion.

Evaluated in float64 it is the truth; in float32, in several orders of rows and classes, it shows the error of plain
PyTorch, which is the criterion of oracle.py.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import oracle


def decoupled(t: Tensor, s: Tensor, labels: Tensor, beta: float) -> Tensor:
    """Decoupled distillation (Zhao et al. 2022) as the paper writes it: the target's class, then the others alone."""
    is_label = F.one_hot(labels.clamp(min=0), t.shape[1]).bool()

    def binary(z):
        p = z.softmax(dim=1)
        return torch.stack([p[is_label], p.masked_fill(is_label, 0.0).sum(dim=1)], dim=1).log()

    def others(z):
        return z[~is_label].view(len(z), -1).log_softmax(dim=1)

    parts = [F.kl_div(of(s), of(t), reduction="none", log_target=True).sum(dim=1) for of in (binary, others)]
    return parts[0] + beta * parts[1]


def standardised(z: Tensor) -> Tensor:
    """(z - mean z) / sd z of each row [R, C], with the standard deviation of a population."""
    return (z - z.mean(dim=1, keepdim=True)) / z.std(dim=1, correction=0, keepdim=True)


class Result(NamedTuple):
    loss: np.ndarray  # [], or [R] without a reduction
    ce: np.ndarray  # [S] or [S, R]
    kd: np.ndarray  # [S] or [S, R]
    ensemble_ce: np.ndarray  # [] or [R]
    grads: np.ndarray  # [S, R, C]


def as_rows(tensor: Tensor, class_dim: int) -> Tensor:
    """Logits or probabilities of any shape as [R, C]."""
    return tensor.movedim(class_dim, -1).flatten(0, -2)


def divergence(t: Tensor, s: Tensor, temperature: float, kind: str, beta: float, labels: Tensor) -> Tensor:
    """T^2 D(softmax(t / T), softmax(s / T)) of each row, [R]."""
    log_t, log_s = F.log_softmax(t / temperature, dim=1), F.log_softmax(s / temperature, dim=1)

    def kl(log_p, log_q):
        return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)

    if kind == "forward":
        value = kl(log_t, log_s)
    elif kind == "reverse":
        value = kl(log_s, log_t)
    elif kind == "decoupled":
        value = decoupled(t / temperature, s / temperature, labels, beta)
    else:
        log_m = torch.logsumexp(torch.stack([log_t + math.log(beta), log_s + math.log(1 - beta)]), dim=0)
        value = beta * kl(log_t, log_m) + (1 - beta) * kl(log_s, log_m)
    return temperature**2 * value


def evaluate(
    logits,
    target,
    dtype,
    *,
    class_dim=1,
    temperature=2.0,
    ce_weight=0.7,
    kd_weight=0.15,
    ensemble_ce_weight=0.0,
    weight=None,
    label_smoothing=0.0,
    ignore_index=-100,
    reduction="mean",
    num_items=None,
    divergence_kind="forward",
    beta=0.5,
    standardise_logits=False,
    teacher_logits=None,
    upstream=None,
    order=0,
) -> Result:
    """Evaluate the loss in `dtype`, with the gradients of the sum of `upstream` (1 by default) times the loss.

    Args:
        order: seed of a permutation of rows and classes, which changes only the rounding; 0 keeps the order.
    """
    z = torch.stack([as_rows(student.detach(), class_dim) for student in logits]).to(dtype)
    teacher = None if teacher_logits is None else as_rows(teacher_logits, class_dim).to(dtype)
    y = as_rows(target, class_dim).to(dtype) if target.is_floating_point() else target.reshape(-1).long()
    w = None if weight is None else weight.to(dtype)
    rows, classes = torch.arange(z.shape[1]), torch.arange(z.shape[2])
    if order:
        shuffle = torch.Generator().manual_seed(order)
        rows, classes = (torch.randperm(n, generator=shuffle) for n in z.shape[1:])
        z, w = z[:, rows][:, :, classes], None if w is None else w[classes]
        teacher = None if teacher is None else teacher[rows][:, classes]
        if y.is_floating_point():
            y = y[rows][:, classes]
        else:
            y = y[rows]
            y = torch.where(y == ignore_index, y, classes.argsort()[y.clamp(0, len(classes) - 1)])
    z.requires_grad_()
    counted = torch.ones(len(rows), dtype=torch.bool) if y.is_floating_point() else y != ignore_index
    sums = reduction if num_items is None else "sum"

    def cross_entropy(scores):
        return F.cross_entropy(
            scores, y, w, label_smoothing=label_smoothing, ignore_index=ignore_index, reduction=sums
        ) / (num_items or 1)

    def kd(student):
        pair = mean if teacher is None else teacher, student
        if standardise_logits:
            pair = map(standardised, pair)
        per_row = divergence(*pair, temperature, divergence_kind, beta, y)
        per_row = torch.where(counted, per_row, 0.0)
        if reduction == "none":
            return per_row
        return per_row.sum() / (num_items or (counted.sum() if reduction == "mean" else 1))

    ensemble = z.mean(dim=0)
    mean = ensemble.detach()
    ces, kds = torch.stack([cross_entropy(s) for s in z]), torch.stack([kd(s) for s in z])
    ensemble_ce = cross_entropy(ensemble)
    loss = ce_weight * ces.sum(dim=0) + kd_weight * kds.sum(dim=0) + ensemble_ce_weight * ensemble_ce
    factor = torch.ones((), dtype=dtype) if upstream is None else upstream.reshape(-1).to(dtype)
    (grads,) = torch.autograd.grad((loss * (factor[rows] if factor.numel() > 1 else factor)).sum(), z)
    back, columns = rows.argsort(), classes.argsort()

    def original(values):
        values = values.detach().double()
        return (values[..., back] if reduction == "none" else values).numpy()

    grads = grads.detach().double()[:, back][:, :, columns].numpy()
    return Result(original(loss), original(ces), original(kds), original(ensemble_ce), grads)


class Expected:
    """The result that a call must give, and the error that is allowed: that of plain PyTorch in its worst order."""

    def __init__(self, logits, target, orders=16, **arguments) -> None:
        self.dtype, self.class_dim = logits[0].dtype, arguments.get("class_dim", 1)
        self.truth = evaluate(logits, target, torch.float64, **arguments)
        if self.dtype == torch.float64:
            self.allowance = oracle.Allowance(Result._fields, oracle.FP64_ROUNDING)
            return
        plain = (evaluate(logits, target, torch.float32, order=order, **arguments) for order in range(orders))
        self.allowance = oracle.Allowance(Result._fields, oracle.EPSILON, map(self._errors, plain))

    def _errors(self, result) -> dict[str, float]:
        return {name: oracle.error(getattr(result, name), getattr(self.truth, name)) for name in Result._fields}

    def check(self, output, grads=None) -> None:
        for name in ("loss", "ce", "kd", "ensemble_ce"):
            truth = getattr(self.truth, name)
            actual = getattr(output, name).detach().double()
            actual = actual.reshape(truth.shape).numpy()
            self.allowance.check(name, oracle.error(actual, truth))
        if grads is not None:
            actual = oracle.stack([as_rows(grad, self.class_dim) for grad in grads])
            if self.dtype in (torch.float32, torch.float64):
                error = oracle.error(actual, self.truth.grads)
            else:
                error = oracle.beyond_rounding(actual, self.truth.grads, self.dtype)
            self.allowance.check("grads", error)
