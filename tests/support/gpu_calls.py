"""Calls of the ensemble loss on a GPU, in sizes that fall into each regime of the kernels."""

from __future__ import annotations

import pytest
import torch

from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad

from ..conftest import batch

DEVICE = "cuda"
# (rows, classes): what each regime of kernels/ensemble_kd/plan.py does with five students.
REGIMES = {"rows": (300, 100), "resident": (257, 1000), "streamed": (64, 32000)}
SIZES = pytest.mark.parametrize("size", REGIMES.values(), ids=REGIMES)


def problem(rows, classes, dtype=torch.bfloat16, seed=0, students=5):
    logits, target = batch(students, rows, classes, dtype=dtype, seed=seed)
    return [z.to(DEVICE) for z in logits], target.to(DEVICE)


def value_and_grad(logits, target, **options):
    """Statistics and gradients as one flat list."""
    output, grads = ensemble_kd_value_and_grad(logits, target, backend="triton", **options)
    return [*output, *grads]


def by_autograd(logits, target, upstream=None, loss=ensemble_kd_loss, **options):
    leaves = [z.detach().requires_grad_() for z in logits]
    output = loss(leaves, target, backend="triton", **options)
    return [*(t.detach() for t in output), *torch.autograd.grad(output.loss, leaves, upstream)]


FORMS = pytest.mark.parametrize("form", [value_and_grad, by_autograd])


def same(actual, expected):
    assert len(actual) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def scalar(value):
    return torch.tensor(value, device=DEVICE)
