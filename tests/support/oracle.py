"""Ground truth for the losses: explicit fp64 formulas in numpy, and the naive PyTorch expression.

It shares no code with the package. There are no hand-made tolerances: an error against fp64 may not exceed the error of
naive fp32 PyTorch on the same input by more than ``EPSILON``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-7  # slightly more than half the distance from 1 to the next fp32 number
FP64_ROUNDING = 1e-12


class Truth(NamedTuple):
    loss: float
    ce: np.ndarray  # [S]
    kd: np.ndarray  # [S]
    ensemble_ce: float
    correct: list[int]  # [S + 1]
    grads: np.ndarray  # [S, B, C], of upstream * loss
    kd_terms: float = 0.0  # sum over students of T^2 times the cross-entropy of t and q, of which kd is a part


def ensemble_kd(
    logits: Sequence[Tensor],
    target: Tensor | None = None,
    *,
    temperature: float = 2.0,
    ce_weight: float = 0.7,
    kd_weight: float = 0.15,
    ensemble_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    upstream: float = 1.0,
) -> Truth:
    """Compute the loss row by row and student by student, with the gradient::

    dL/dz_j = upstream / B * [ce_weight (p_j - y) + kd_weight T (p_j^T - t)],    y one-hot, or smoothed
    """
    z = stack(logits)
    students, rows, classes = z.shape
    labels = [None] * rows if target is None else target.tolist()
    counted = [row for row in range(rows) if target is None or labels[row] != ignore_index]
    weights = [1 / students] * students if ensemble_weights is None else ensemble_weights.detach().double().tolist()
    scale = 1 / max(len(counted), 1) if reduction == "mean" else 1.0

    ce, kd, ensemble_ce, correct = np.zeros(students), np.zeros(students), 0.0, [0] * (students + 1)
    grads, kd_terms = np.zeros_like(z), 0.0
    with np.errstate(divide="ignore"):
        for row in counted:
            if ensemble_weights is None:
                mixed = z[:, row].sum(axis=0) / students  # exact for small integers, so that ties stay ties
            else:
                mixed = sum(w * z[j, row] for j, w in enumerate(weights) if w != 0)
            log_t = _log_softmax(mixed / temperature)
            t = np.exp(log_t)
            y = labels[row]
            for j in range(students):
                log_q = _log_softmax(z[j, row] / temperature)
                given = t > 0
                kd[j] += temperature**2 * np.sum(t[given] * (log_t[given] - log_q[given]))
                kd_terms += temperature**2 * np.sum(t[given] * -log_q[given])
                grads[j, row] = kd_weight * temperature * (np.exp(log_q) - t)
                if y is None:
                    continue
                log_p = _log_softmax(z[j, row])
                ce[j] += _cross_entropy(log_p, y, label_smoothing)
                grads[j, row] += ce_weight * (np.exp(log_p) - label_smoothing / classes)
                grads[j, row, y] -= ce_weight * (1 - label_smoothing)
                correct[j] += _first_largest(z[j, row]) == y
            if y is not None:
                ensemble_ce += _cross_entropy(_log_softmax(mixed), y, label_smoothing)
                correct[students] += _first_largest(mixed) == y
    ce, kd, ensemble_ce = ce * scale, kd * scale, ensemble_ce * scale
    loss = kd_weight * kd.sum() + (0.0 if target is None else ce_weight * ce.sum())
    return Truth(float(loss), ce, kd, float(ensemble_ce), correct, grads * scale * upstream, kd_terms * scale)


def _log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max()
    return shifted - np.log(np.exp(shifted).sum())


def _cross_entropy(log_p: np.ndarray, label: int, smoothing: float) -> float:
    even = -log_p.mean() if smoothing else 0.0
    return -(1 - smoothing) * log_p[label] + smoothing * even


def _first_largest(x: np.ndarray) -> int:
    return int(np.flatnonzero(x == x.max())[0])


def naive(
    logits: Sequence[Tensor],
    target: Tensor | None = None,
    *,
    temperature: float = 2.0,
    ce_weight: float = 0.7,
    kd_weight: float = 0.15,
    ensemble_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    upstream: float = 1.0,
    order: int = 0,
) -> Truth:
    """Compute the loss by the obvious float32 expression, with gradients by autograd.

    Args:
        order: seed of a permutation of students, rows and classes, which changes only the rounding; 0 keeps the order.

    -inf becomes -1e5, since 0 * -inf would make the plain expression NaN; e^-10000 is 0 as well.
    """
    leaves = [z.detach().float().clamp(min=-1e5).requires_grad_() for z in logits]
    device = leaves[0].device
    counted = torch.ones(len(leaves[0]), dtype=torch.bool, device=device) if target is None else target != ignore_index
    rows, students = counted.nonzero()[:, 0], torch.arange(len(leaves), device=device)
    classes = torch.arange(leaves[0].shape[1], device=device)
    if order:
        generator = torch.Generator().manual_seed(order)
        rows, classes, students = (
            x[torch.randperm(len(x), generator=generator).to(device)] for x in (rows, classes, students)
        )
    z = [leaves[j][rows][:, classes] for j in students]
    labels = None if target is None else classes.argsort()[target[rows]]
    together = torch.stack(z)
    mixed = together.mean(0)
    if ensemble_weights is not None:
        mixed = (ensemble_weights.float()[students, None, None] * together).sum(0)
    mixed = mixed.detach()
    teacher = F.softmax(mixed / temperature, dim=1)
    over = {"mean": "batchmean", "sum": "sum"}[reduction]

    def cross_entropy(scores: Tensor) -> Tensor:
        if labels is None:
            return torch.zeros((), device=device)
        return F.cross_entropy(scores, labels, label_smoothing=label_smoothing, reduction=reduction)

    ce = torch.stack([cross_entropy(student) for student in z])
    kd = torch.stack([F.kl_div(F.log_softmax(student / temperature, dim=1), teacher, reduction=over) for student in z])
    kd = temperature**2 * kd
    loss = ce_weight * ce.sum() + kd_weight * kd.sum()
    grads = torch.autograd.grad(upstream * loss, leaves)
    ce, kd = (x.detach()[students.argsort()].double().cpu().numpy() for x in (ce, kd))
    return Truth(loss.item(), ce, kd, cross_entropy(mixed).item(), [], stack(grads))


def error(actual, truth) -> float:
    """Relative error of the norm; 0 if both are 0."""
    actual, truth = np.asarray(actual, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    distance = np.linalg.norm(actual - truth)
    return float(distance / np.linalg.norm(truth)) if distance else 0.0


def stack(grads: Sequence[Tensor]) -> np.ndarray:
    """Stack gradients or logits to [S, B, C] in fp64."""
    return np.stack([grad.detach().double().cpu().numpy() for grad in grads])


def half_ulp(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Largest error of rounding ``values`` to a 16-bit dtype."""
    info = torch.finfo(dtype)
    _, exponent = np.frexp(np.maximum(np.abs(values), info.smallest_normal))
    return np.ldexp(0.25 * info.eps, exponent)


def beyond_rounding(actual: np.ndarray, truth: np.ndarray, dtype: torch.dtype) -> float:
    """Norm-wise error beyond what rounding the result to ``dtype`` explains; fp32: the whole error."""
    if dtype == torch.float32:
        return error(actual, truth)
    excess = np.maximum(np.abs(actual - truth) - half_ulp(truth, dtype), 0.0)
    return float(np.linalg.norm(excess) / np.linalg.norm(truth)) if excess.any() else 0.0


class Allowance:
    """The allowed error of each result by name: that of plain PyTorch in its worst order of operations.

    Several orders are tried, since the rounding of one scalar may happen to be 0. An order is computed only when an
    error exceeds what the orders before it allow.

    Args:
        names: names of the results.
        rounding: error that is always allowed, and is added to that of plain PyTorch.
        orders: errors of plain PyTorch by name, one dict an order.
    """

    def __init__(self, names: Iterable[str], rounding: float, orders: Iterable[dict[str, float]] = ()) -> None:
        self._allowed = dict.fromkeys(names, rounding)
        self._rounding = rounding
        self._orders = iter(orders)

    def check(self, name: str, actual: float) -> None:
        while actual > self._allowed[name]:
            errors = next(self._orders, None)
            assert errors is not None, f"{name}: error {actual:.3g}, allowed {self._allowed[name]:.3g}"
            for other, plain in errors.items():
                self._allowed[other] = max(self._allowed[other], plain + self._rounding)


class Expected:
    """The result that a call must give, computed once for all implementations, and the error that is allowed."""

    STATISTICS = ("loss", "ce", "kd", "ensemble_ce")

    def __init__(self, logits: Sequence[Tensor], target: Tensor | None = None, *, orders: int = 1, **options) -> None:
        self.dtype, self.students = logits[0].dtype, len(logits)
        self.truth = ensemble_kd(logits, target, **options)
        names = (*self.STATISTICS, "grads")
        if self.dtype == torch.float64:
            self.allowance = Allowance(names, FP64_ROUNDING)
            return
        logits = [z.clone() for z in logits]  # a test may overwrite its own
        plain = (naive(logits, target, order=order, **options) for order in range(orders))
        self.allowance = Allowance(names, EPSILON, map(self._errors, plain))

    def _errors(self, plain) -> dict[str, float]:
        statistics = {name: self.error(name, getattr(plain, name)) for name in self.STATISTICS}
        return statistics | {"grads": error(plain.grads, self.truth.grads)}

    def error(self, name: str, actual) -> float:
        truth = getattr(self.truth, name)
        if name == "kd":  # a cross-entropy minus an entropy; the error is relative to these terms
            return float(np.linalg.norm(np.asarray(actual, dtype=np.float64) - truth) / self.truth.kd_terms)
        return error(actual, truth)

    def check(self, output, grads=None) -> None:
        """Check every statistic and gradient by the criterion of this module; fp64 results by fp64 rounding."""
        for name in self.STATISTICS:
            self.allowance.check(name, self.error(name, getattr(output, name).detach().cpu().numpy()))
        assert output.correct.tolist() == self.truth.correct
        if grads is not None:
            self.check_grads(grads)

    def check_grads(self, grads: Sequence[Tensor]) -> None:
        assert [grad.dtype for grad in grads] == [self.dtype] * self.students
        if self.dtype in (torch.float32, torch.float64):
            actual = error(stack(grads), self.truth.grads)
        else:
            actual = beyond_rounding(stack(grads), self.truth.grads, self.dtype)
        self.allowance.check("grads", actual)


def check(output, grads, logits, target=None, **options) -> None:
    Expected(logits, target, **options).check(output, grads)
