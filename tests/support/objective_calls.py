"""Calls of the loss with the tensors of an objective: at once, and by autograd."""

from __future__ import annotations

import math

import torch

from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad

from .. import conftest
from ..conftest import batch
from .objectives import OBJECTIVES

# Triton's interpreter is slow: it runs fewer tests, in tests/kernels/test_ensemble_kd_triton_objectives.py.
BACKENDS = ("auto", *(name for name in conftest.BACKENDS if name != "triton"))
IMPLEMENTATIONS = {name: function for name, function in conftest.IMPLEMENTATIONS.items() if name != "triton"}
ROWS, CLASSES, STUDENTS = 7, 13, 4


def case(name, dtype=torch.float32, students=STUDENTS, rows=ROWS, classes=CLASSES):
    """Return formula, logits, target, tensors and arguments of an objective. One row is ignored."""
    formula, tensors, arguments = OBJECTIVES[name]
    logits, target = batch(students, rows, classes, dtype=dtype)
    target[rows // 2] = -100
    tensors = tensors(students, rows, classes)
    if dtype == torch.float64:
        tensors = {name: tensor.double() for name, tensor in tensors.items()}
    return formula, logits, target, tensors, arguments


def at_once(logits, target, tensors, implementation, **arguments):
    weights_grad = None
    if "ensemble_weights" in tensors:
        weights_grad = torch.full_like(tensors["ensemble_weights"], math.nan)
    arguments = {**tensors, **arguments, "weights_grad": weights_grad}
    if implementation in IMPLEMENTATIONS:
        output, grads = IMPLEMENTATIONS[implementation](logits, target, **arguments)
    else:
        output, grads = ensemble_kd_value_and_grad(logits, target, backend=implementation, **arguments)
    return output, grads, weights_grad


def by_autograd(logits, target, tensors, backend, upstream=1.0, **arguments):
    leaves = [z.detach().requires_grad_() for z in logits]
    tensors = dict(tensors)
    of = list(leaves)
    if "ensemble_weights" in tensors:
        tensors["ensemble_weights"] = tensors["ensemble_weights"].detach().requires_grad_()
        of.append(tensors["ensemble_weights"])
    output = ensemble_kd_loss(leaves, target, backend=backend, **tensors, **arguments)
    grads = torch.autograd.grad(
        output.loss, of, torch.tensor(upstream, dtype=output.loss.dtype), materialize_grads=True
    )
    return output, grads[: len(leaves)], grads[-1] if len(of) > len(leaves) else None
