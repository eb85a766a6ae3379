"""Growth of the peak resident set of a process, which must be a new one, during a call. Needs Linux."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad, linear_ensemble_kd_loss


def peak() -> float:
    """Return the peak resident set in MB; ru_maxrss would start from the parent's peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def growth(call: Callable[[], object]) -> float:
    before = peak()
    call()
    return peak() - before


def of_loss(form: str, backend: str, shape: tuple[int, ...], layout: str) -> float:
    """Return the growth in MB while the loss of five students is computed, after a first call with small logits."""
    _loss(form, backend, (8, 100), layout)
    return _loss(form, backend, shape, layout)


def _loss(form, backend, shape, layout):
    logits = [_logits(shape, layout) for _ in range(5)]
    target = torch.randint(shape[1], (shape[0], *shape[2:]))
    if layout == "probabilities":
        target = torch.full(shape, 1 / shape[1])
    if form == "out":
        out = [torch.empty_like(z).fill_(0) for z in logits]
        return growth(lambda: ensemble_kd_value_and_grad(logits, target, out=out, backend=backend))
    logits = [z.requires_grad_() for z in logits]
    return growth(lambda: ensemble_kd_loss(logits, target, backend=backend).loss.backward())


def _logits(shape, layout):
    # Filled in place, so that no temporary tensor raises the peak beforehand.
    if layout == "classes first":
        return torch.empty(shape[1], shape[0], *shape[2:]).normal_().transpose(0, 1)
    return torch.empty(shape).normal_()


def of_linear_loss(form: str, rows: int, classes: int, size: int) -> float:
    """Return the growth in MB while the loss of two classifiers is computed in chunks, or from the whole logits."""
    _linear_loss(form, 8, 100, size)
    return _linear_loss(form, rows, classes, size)


def _linear_loss(form, rows, classes, size):
    hidden = [torch.empty(rows, size).normal_().requires_grad_() for _ in range(2)]
    weights = [torch.empty(classes, size).normal_().requires_grad_() for _ in range(2)]
    target = torch.randint(classes, (rows,))
    if form == "chunks":
        return growth(lambda: linear_ensemble_kd_loss(hidden, weights, target).loss.backward())

    def whole():
        ensemble_kd_loss([F.linear(h, w) for h, w in zip(hidden, weights, strict=True)], target).loss.backward()

    return growth(whole)
