"""Published objectives in plain PyTorch, as their papers write them, and as arguments of ensemble_kd_loss.

A formula takes the logits z of S students, [B, C] each, labels [B] of which none is ignored, and the tensors that its
arguments name. Autograd gives its gradients. Evaluated in float64 it is the truth; in float32 it shows the error of
plain PyTorch, which is the criterion of oracle.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import oracle

ALPHA, GAMMA = 0.7, 0.15
ONE_TEMPERATURE, HINTON_TEMPERATURE = 3.0, 4.0


def kl(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over rows."""
    q, p = F.log_softmax(student / temperature, dim=1), F.softmax(teacher / temperature, dim=1)
    return temperature**2 * F.kl_div(q, p, reduction="batchmean")


def weighted(z: Sequence[Tensor], weights: Tensor) -> Tensor:
    """sum_j w_j z_j, w [S] or [B, S]."""
    return sum((w[:, None] if w.dim() else w) * s for w, s in zip(weights.unbind(-1), z, strict=True))


def hinton(z, y, *, teacher_logits):
    """Hinton, Vinyals, Dean 2015, section 2: labels, and T^2 times soft targets (less their entropy, a constant)."""
    return sum(ALPHA * F.cross_entropy(s, y) + GAMMA * kl(teacher_logits, s, HINTON_TEMPERATURE) for s in z)


def born_again(z, y, *, teacher_logits):
    """Furlanello et al. 2018, eq. 2: the previous generation's prediction beside the labels."""
    return sum(F.cross_entropy(s, y) + kl(teacher_logits, s, 1.0) for s in z)


def mutual(z, y):
    """Deep mutual learning, Zhang et al. 2018, eq. 8: L_k = CE_k + 1/(K-1) sum_{l != k} KL(p_l || p_k)."""
    total = 0.0
    for k, student in enumerate(z):
        others = [kl(other.detach(), student, 1.0) for i, other in enumerate(z) if i != k]
        total = total + F.cross_entropy(student, y) + sum(others) / len(others)
    return total


def codistillation(z, y):
    """Anil et al. 2018, algorithm 1: cross-entropy psi with the mean of the others' predictions.

    Less the mean entropy of those predictions, a constant that the sum of divergences does not have.
    """
    total = 0.0
    for k, student in enumerate(z):
        others = [F.softmax(other.detach(), dim=1) for i, other in enumerate(z) if i != k]
        mean = sum(others) / len(others)
        psi = -(mean * F.log_softmax(student, dim=1)).sum(dim=1).mean()
        entropy = sum(-torch.special.xlogy(p, p).sum(dim=1).mean() for p in others) / len(others)
        total = total + F.cross_entropy(student, y) + psi - entropy
    return total


def one(z, y, *, ensemble_weights, attached=False):
    """ONE, Lan, Zhu, Gong 2018, eqs. 5-8: sum_i CE_i + CE_e + T^2 sum_i KL(p_e || p_i), z_e = sum_i g_i z_i, T = 3."""
    gated = weighted(z, ensemble_weights)
    target = gated if attached else gated.detach()
    loss = F.cross_entropy(gated, y)
    return loss + sum(F.cross_entropy(s, y) + kl(target, s, ONE_TEMPERATURE) for s in z)


def online_ensemble(z, y, *, ensemble_weights=None, ensemble_ce=0.0, temperature=2.0, smoothing=0.0):
    """Walawalkar, Shen, Savvides 2020, without the intermediate loss; then with weights and CE of the ensemble."""
    mean = torch.stack(tuple(z)).mean(dim=0) if ensemble_weights is None else weighted(z, ensemble_weights)
    loss = ensemble_ce * F.cross_entropy(mean, y, label_smoothing=smoothing)
    for student in z:
        loss = loss + ALPHA * F.cross_entropy(student, y, label_smoothing=smoothing)
        loss = loss + GAMMA * kl(mean.detach(), student, temperature)
    return loss


def teachers_of(teacher_logits):
    """The external teachers [B, C] of the argument: none, one [B, C], or K of [K, B, C]."""
    if teacher_logits is None:
        return ()
    return teacher_logits.unbind() if teacher_logits.dim() == 3 else (teacher_logits,)


def mixed_logits(z, y, *, mixing, teacher_logits=None, temperature=2.0):
    """target_j = softmax(sum_i W_ji z_i / T)."""
    sources = [s.detach() for s in (*z, *teachers_of(teacher_logits))]
    loss = 0.0
    for row, student in zip(mixing.tolist(), z, strict=True):
        target = sum(w * source for w, source in zip(row, sources, strict=True) if w)
        loss = loss + ALPHA * F.cross_entropy(student, y) + GAMMA * kl(target, student, temperature)
    return loss


def mixed_probabilities(z, y, *, mixing, teacher_logits=None, temperature=2.0):
    """kd_j = T^2 sum_i W_ji KL(softmax(z_i / T) || softmax(z_j / T))."""
    sources = [s.detach() for s in (*z, *teachers_of(teacher_logits))]
    loss = 0.0
    for row, student in zip(mixing.tolist(), z, strict=True):
        loss = loss + ALPHA * F.cross_entropy(student, y)
        for w, source in zip(row, sources, strict=True):
            loss = loss + (GAMMA * w * kl(source, student, temperature) if w else 0.0)
    return loss


def others(students: int) -> Tensor:
    """W_ji = 1/(S-1), 0 on the diagonal; fp64, since the formulas divide."""
    return (1 - torch.eye(students, dtype=torch.float64)) / (students - 1)


def generator(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gate(rows: int, students: int) -> Tensor:
    return F.softmax(torch.randn(rows, students, generator=generator()), dim=1)


def teacher(rows: int, classes: int) -> Tensor:
    return 3.0 * torch.randn(rows, classes, generator=generator())


def matrix(students: int, columns: int) -> Tensor:
    """Make a matrix with entries of 0 and below 0, of which one row does not sum to 1."""
    w = torch.rand(students, columns, generator=generator())
    if students == 1:
        return w / w.sum()
    w[0, -1] = 0.0
    w = w / w.sum(dim=1, keepdim=True)
    w[-1, 0] -= 1.5
    w[-1, 1] += 1.0
    return w


class Objective(NamedTuple):
    formula: Callable[..., Tensor]
    tensors: Callable[[int, int, int], dict[str, Tensor]]  # (S, B, C) -> tensors for both the formula and the loss
    arguments: dict[str, Any]  # arguments of the loss only


def no_tensors(students, rows, classes):
    return {}


def gated(students, rows, classes):
    return {"ensemble_weights": gate(rows, students)}


def weighing(students, rows, classes):
    return {"ensemble_weights": torch.linspace(-0.2, 0.6, students)}


def taught(students, rows, classes):
    return {"teacher_logits": teacher(rows, classes)}


def mixed_others(students, rows, classes):
    return {"mixing": others(students)}


def mixed(students, rows, classes):
    return {"mixing": matrix(students, students)}


def mixed_and_taught(students, rows, classes):
    return {"mixing": matrix(students, students + 1), **taught(students, rows, classes)}


def mixed_and_taught_by_two(students, rows, classes):
    teachers = 3.0 * torch.randn(2, rows, classes, generator=generator())
    return {"mixing": matrix(students, students + 2), "teacher_logits": teachers}


LABELS = {"ce_weight": 1.0, "kd_weight": 1.0}
PAIRS = {**LABELS, "temperature": 1.0, "mixing_space": "probabilities"}
ONE = {**LABELS, "temperature": ONE_TEMPERATURE, "ensemble_ce_weight": 1.0}
OBJECTIVES = {
    "paper": Objective(online_ensemble, no_tensors, {}),
    "hinton": Objective(hinton, taught, {"temperature": HINTON_TEMPERATURE}),
    "born again": Objective(born_again, taught, {**LABELS, "temperature": 1.0}),
    "mutual": Objective(lambda z, y, mixing: mutual(z, y), mixed_others, PAIRS),
    "codistillation": Objective(lambda z, y, mixing: codistillation(z, y), mixed_others, PAIRS),
    "one": Objective(one, gated, ONE),
    "gate": Objective(online_ensemble, gated, {}),
    "ensemble's cross-entropy": Objective(
        partial(online_ensemble, ensemble_ce=0.5), no_tensors, {"ensemble_ce_weight": 0.5}
    ),
    "weights and the ensemble's cross-entropy, smoothed": Objective(
        partial(online_ensemble, ensemble_ce=0.5, smoothing=0.2),
        weighing,
        {"ensemble_ce_weight": 0.5, "label_smoothing": 0.2},
    ),
    "gate, smoothed, T = 2.5": Objective(
        partial(online_ensemble, ensemble_ce=1.5, smoothing=0.1, temperature=2.5),
        gated,
        {"ensemble_ce_weight": 1.5, "label_smoothing": 0.1, "temperature": 2.5},
    ),
    "teacher, smoothed": Objective(
        lambda z, y, teacher_logits: sum(
            ALPHA * F.cross_entropy(s, y, label_smoothing=0.1) + GAMMA * kl(teacher_logits, s, 2.0) for s in z
        ),
        taught,
        {"label_smoothing": 0.1},
    ),
}
for _t in (2.0, 2.5):
    OBJECTIVES |= {
        f"logits mixed, T = {_t}": Objective(partial(mixed_logits, temperature=_t), mixed, {"temperature": _t}),
        f"logits and a teacher mixed, T = {_t}": Objective(
            partial(mixed_logits, temperature=_t), mixed_and_taught, {"temperature": _t}
        ),
        f"probabilities mixed, T = {_t}": Objective(
            partial(mixed_probabilities, temperature=_t), mixed, {"temperature": _t, "mixing_space": "probabilities"}
        ),
        f"probabilities and a teacher mixed, T = {_t}": Objective(
            partial(mixed_probabilities, temperature=_t),
            mixed_and_taught,
            {"temperature": _t, "mixing_space": "probabilities"},
        ),
        f"logits and two teachers mixed, T = {_t}": Objective(
            partial(mixed_logits, temperature=_t), mixed_and_taught_by_two, {"temperature": _t}
        ),
        f"probabilities and two teachers mixed, T = {_t}": Objective(
            partial(mixed_probabilities, temperature=_t),
            mixed_and_taught_by_two,
            {"temperature": _t, "mixing_space": "probabilities"},
        ),
    }


class Result(NamedTuple):
    loss: float
    grads: np.ndarray  # [S, B, C]
    weights_grad: np.ndarray | None  # as ensemble_weights


def evaluate(formula, logits, target, tensors, dtype, *, ignore_index=-100, upstream=1.0, order=0) -> Result:
    """Evaluate a formula in `dtype`, with its gradients by autograd.

    Args:
        order: seed of a permutation of students, rows and classes, which changes only the rounding; 0 keeps the order.

    -inf becomes -1e5, since 0 * -inf would make plain expressions NaN; e^-10000 is 0 as well.
    """

    def finite(x):
        return x.detach().to(dtype).clamp(min=-1e5)

    leaves = [finite(z).requires_grad_() for z in logits]
    weights = tensors.get("ensemble_weights")
    weights = None if weights is None else weights.detach().to(dtype).requires_grad_()
    rows, classes = (target != ignore_index).nonzero()[:, 0], torch.arange(leaves[0].shape[1])
    students = torch.arange(len(leaves))
    if order:
        shuffle = torch.Generator().manual_seed(order)
        rows, classes, students = (x[torch.randperm(len(x), generator=shuffle)] for x in (rows, classes, students))
    given = dict(tensors)
    if weights is not None:
        given["ensemble_weights"] = (weights if weights.dim() == 1 else weights[rows])[..., students]
    if "mixing" in given:
        sources = [*students, *range(len(leaves), given["mixing"].shape[1])]
        given["mixing"] = given["mixing"][students][:, sources]
    if "teacher_logits" in given:
        given["teacher_logits"] = finite(given["teacher_logits"])[..., rows, :][..., classes]
    loss = formula([leaves[j][rows][:, classes] for j in students], classes.argsort()[target[rows]], **given)
    of = leaves if weights is None else [*leaves, weights]
    grads = torch.autograd.grad(upstream * loss, of, materialize_grads=True)
    weights_grad = None if weights is None else grads[-1].double().numpy()
    return Result(loss.item(), oracle.stack(grads[: len(leaves)]), weights_grad)


class Expected:
    """The result that a call must give, and the error that is allowed: that of plain PyTorch in its worst order."""

    def __init__(self, formula, logits, target, tensors, orders: int = 16, **options) -> None:
        self.dtype = logits[0].dtype
        self.truth = evaluate(formula, logits, target, tensors, torch.float64, **options)
        if self.dtype == torch.float64:
            self.allowance = oracle.Allowance(Result._fields, oracle.FP64_ROUNDING)
            return
        logits, tensors = [z.clone() for z in logits], {name: t.clone() for name, t in tensors.items()}
        plain = (
            evaluate(formula, logits, target, tensors, torch.float32, order=order, **options) for order in range(orders)
        )
        self.allowance = oracle.Allowance(Result._fields, oracle.EPSILON, map(self._errors, plain))

    def _errors(self, plain) -> dict[str, float]:
        results = {name: actual for name, actual in plain._asdict().items() if actual is not None}
        return {name: oracle.error(actual, getattr(self.truth, name)) for name, actual in results.items()}

    def check(self, output, grads, weights_grad=None) -> None:
        actual = {"loss": oracle.error(output.loss.item(), self.truth.loss)}
        actual["grads"] = oracle.beyond_rounding(oracle.stack(grads), self.truth.grads, self.dtype)
        if self.dtype == torch.float64:
            actual["grads"] = oracle.error(oracle.stack(grads), self.truth.grads)
        if weights_grad is not None:
            actual["weights_grad"] = oracle.error(weights_grad, self.truth.weights_grad)
        for name, error in actual.items():
            self.allowance.check(name, error)
