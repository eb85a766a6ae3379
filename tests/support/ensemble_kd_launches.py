"""Launches of the Triton kernels of the ensemble distillation loss, under any plan, in Triton's interpreter."""

import torch

from oekd_fast.kernels.ensemble_kd import launch as ensemble_kd
from oekd_fast.kernels.ensemble_kd.plan import Plan

from ..conftest import batch
from .objectives import teachers_of

PLANS = {
    "rows": Plan("rows", rows=2, block=32, tiles=1, warps=1, programs_per_sm=1),
    "one row": Plan("resident", rows=1, block=32, tiles=1, warps=1, programs_per_sm=4),
    "wide": Plan("resident", rows=1, block=256, tiles=1, warps=2, programs_per_sm=2),
    "one chunk": Plan("streamed", rows=1, block=32, tiles=1, warps=1, programs_per_sm=1),
    "chunks": Plan("streamed", rows=1, block=8, tiles=2, warps=1, programs_per_sm=2),
    "chunks of one tile": Plan("streamed", rows=1, block=8, tiles=1, warps=1, programs_per_sm=2),
}
GRADIENT_PLANS = {
    "rows": Plan("rows", rows=4, block=32, tiles=1, warps=1, programs_per_sm=1),
    "chunks": Plan("streamed", rows=1, block=8, tiles=2, warps=1, programs_per_sm=2),
}
ADJACENT = {"adjacent": Plan("adjacent", rows=8, block=32, tiles=1, warps=1, programs_per_sm=1)}
CLASSES = 30  # smaller than a tile, and not a multiple of one
UNREAD = {"temperature": 0.0, "ce_weight": 0.0, "kd_weight": 0.0}  # arguments that device_scalars replaces


def problem(logits, target, ensemble_weights=None, *, teacher_logits=None, **options):
    """The arguments of an op, by default those of the public functions."""
    arguments = {
        "temperature": 2.0,
        "ce_weight": 0.7,
        "kd_weight": 0.15,
        "label_smoothing": 0.0,
        "ignore_index": -100,
        "mean": True,
        "detach_ensemble": True,
    } | options
    return ensemble_kd.Problem(
        logits, target, ensemble_weights, teacher_logits=teachers_of(teacher_logits), **arguments
    )


def run(problem, plan, grad_scale=None, with_grads=True, keep_rows=False):
    """Everything that a launch of the loss writes, and the gradients; checks that it resets its counters."""
    grads = [torch.empty_like(z) for z in problem.logits] if with_grads else []
    result, launch = ensemble_kd.loss_launch(problem, grads, grad_scale, plan, keep_rows=keep_rows)
    launch.run(problem.device)
    counters = launch.arguments["counters" if plan.regime == "streamed" else "done"]
    assert not counters.any()
    return result, grads


def run_gradients(problem, result, plan, upstream=1.0, of_weights=False):
    """Gradients of the logits, and of the weights or None, from the row statistics in `result`."""
    grads = [torch.empty_like(z) for z in problem.logits]
    weights_grad = torch.empty(len(grads)) if of_weights else None
    arguments = (problem, grads, torch.tensor(upstream), result.row_statistics, result.counted, weights_grad, plan)
    ensemble_kd.gradients_launch(*arguments).run(problem.device)
    return grads, weights_grad


def case(rows=5, students=3, dtype=torch.float32, classes=CLASSES):
    """Random logits and labels, of which every fourth is ignored.

    Of the five rows, the plan "rows" makes three tiles, the last partial, for two programs; "one row" gives each row a
    program, and "wide" takes four programs.
    """
    logits, target = batch(students, rows, classes, dtype=dtype)
    target[1::4] = -100
    return logits, target
