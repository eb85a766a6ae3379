"""The ensemble distillation loss on the GPU: launches of the kernels, and implementations of the ops.

Each call is one launch, in whichever regime (plan.py). A mean over many rows needs two more launches of PyTorch, which
count the rows. Arguments are checked in ``oekd_fast.losses``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..common.counters import zeroed
from ..common.launch import Launch, interpreted
from .gradients import gradients
from .plan import WARP, Plan, plan_ensemble_kd, plan_gradients, power_of_2
from .problem import Problem
from .resident import resident
from .row_statistics import QUADS
from .streamed import ARRIVED, streamed

INTERPRETED = interpreted(resident)


@dataclass(frozen=True)
class Loss:
    """Buffers that a launch of the loss writes, beside the gradients.

    With ``per_row`` the first four are [R], [S, R], [S, R] and [R].
    """

    loss: Tensor
    ce: Tensor
    kd: Tensor
    ensemble_ce: Tensor
    correct: Tensor
    row_statistics: Tensor | None
    counted: Tensor  # the number of counted rows; with class weights of labels [2], and the sum of these

    @classmethod
    def empty(cls, problem: Problem, keep_rows: bool) -> Loss:
        students, rows, _ = problem.shape
        new = problem.new
        of_rows = (rows,) if problem.per_row else ()
        return cls(
            loss=new(*of_rows),
            ce=new(students, *of_rows),
            kd=new(students, *of_rows),
            ensemble_ce=new(*of_rows),
            correct=new(students + 1, dtype=torch.int64),
            row_statistics=new(rows, QUADS.value, power_of_2(problem.members), 4) if keep_rows else None,
            counted=new(*((2,) if problem.divisors == 2 else ())),
        )

    @property
    def statistics(self) -> tuple[Tensor, ...]:
        return self.loss, self.ce, self.kd, self.ensemble_ce, self.correct


def loss_launch(
    problem: Problem,
    grads: Sequence[Tensor] = (),
    grad_scale: Tensor | None = None,
    plan: Plan | None = None,
    weights_grad: Tensor | None = None,
    keep_rows: bool = False,
) -> tuple[Loss, Launch]:
    """Prepare a launch of the loss, and the buffers that it writes.

    Args:
        grads: S buffers like the logits for the gradients, or () for the loss alone.
        grad_scale: one element that multiplies the gradients; None for 1.
        plan: layout of the launch; None for the one of ``plan_ensemble_kd``.
        weights_grad: fp32 [B, S] buffer for each row's part of dL/dw; resident plans only.
        keep_rows: whether the statistics of the rows are needed. Some plans do without them otherwise.
    """
    students, rows, classes = problem.shape
    layout = problem.layout(grads)
    arguments = problem.kernel_arguments(layout, grads, grad_scale)
    if plan is None:
        itemsize = problem.logits[0].element_size()
        weighted_and_smoothed = len(arguments["class_weights"]) > 0 and arguments["SMOOTH"]
        lean = arguments["POWER"] > 0 and not weighted_and_smoothed
        plan = plan_ensemble_kd(problem.held - 1, classes, itemsize, layout.unit == 0, lean)
    sms = multiprocessors(problem.device)
    tiles = -(-rows // plan.rows)
    one_tile = plan.regime != "streamed" and tiles <= sms * plan.programs_of_one_tile
    result = Loss.empty(problem, keep_rows or not (one_tile or plan.regime == "adjacent"))
    arguments |= vars(result)
    threads = WARP * plan.warps
    arguments |= {
        "BLOCK": plan.block,
        "THREADS": plan.threads,
        "RUN": plan.run(arguments["VEC"]),
        "number": problem.divisors_of_many() if grads else (),
        "PER_ROW": problem.per_row,
        "LABELS": plan.labels(rows),
        "SUM_ROWS": max(1, 8 * threads // arguments["WIDTH"]),
        "ENTRIES": max(1, 16 * threads // arguments["WIDTH"]),
    }
    registers = plan.registers_of_one_tile if one_tile else plan.registers
    options = {"num_warps": plan.warps} | ({"maxnreg": registers} if registers else {})
    programs_per_sm = plan.programs_of_one_tile if one_tile else plan.programs_per_sm
    at_once = sms * programs_per_sm
    if plan.regime == "streamed":
        chunks = -(-classes // (plan.tiles * plan.block))
        passes = 2 if grads else 1
        programs = max(1, min(at_once, rows * chunks * passes))
        arguments |= {
            "chunk_statistics": problem.new(rows, chunks, QUADS.value, arguments["WIDTH"], 4),
            "partials": problem.new(programs, 4 * arguments["WIDTH"]),
            "counters": zeroed(ARRIVED.value + rows, problem.device),
            # A row's gradients are due after one and a half times as many tickets as there are programs. Tickets of the
            # time when all programs were busy are then finished, and the logits are still in the L2 cache.
            "lag": 3 * programs // (2 * passes * chunks) + 1,
            "TILES": plan.tiles,
        }
        return result, Launch(streamed, programs, arguments, options, programs_per_sm)
    programs = max(1, min(at_once, tiles))
    arguments |= problem.objective_arguments(layout, weights_grad) | {
        "partials": problem.new(programs, 4 * arguments["WIDTH"]),
        "done": zeroed(1, problem.device),
        "ROWS": plan.rows,
        "IN_PLACE": overlap(problem.logits, grads),
        "ONE_TILE": one_tile,
    }
    return result, Launch(resident, programs, arguments, options, programs_per_sm)


def gradients_launch(
    problem: Problem,
    grads: Sequence[Tensor],
    grad_scale: Tensor,
    row_statistics: Tensor,
    counted: Tensor,
    weights_grad: Tensor | None = None,
    plan: Plan | None = None,
) -> Launch:
    """Prepare a launch that computes the gradients from the row statistics of a launch of the loss."""
    students, rows, classes = problem.shape
    if plan is None:
        plan = plan_gradients(students, classes, problem.logits[0].element_size())
    layout = problem.layout(grads)
    arguments = problem.kernel_arguments(layout, grads, grad_scale)
    chunks = -(-classes // (plan.tiles * plan.block))
    at_once = multiprocessors(problem.device) * plan.programs_per_sm
    programs = max(1, min(at_once, -(-rows // plan.rows) * chunks))
    arguments |= {
        "row_statistics": row_statistics,
        "counted": counted,
        "weights_grad": weights_grad,
        "partials": None if weights_grad is None else problem.new(programs, students),
        "done": None if weights_grad is None else zeroed(1, problem.device),
        "ROWS": plan.rows,
        "BLOCK": plan.block,
        "TILES": plan.tiles,
    }
    return Launch(gradients, programs, arguments, {"num_warps": plan.warps}, plan.programs_per_sm)


# Implementations of the ops in oekd_fast.losses.schemas. Only the CPU kernel reads the argument `isa`.


def ensemble_kd_value(logits, target, *, isa="auto", **options):
    problem = Problem(logits, target, **options)
    result, launch = loss_launch(problem)
    launch.run(problem.device)
    return result.statistics


def ensemble_kd_value_and_rows(logits, target, **options):
    problem = Problem(logits, target, **options)
    result, launch = loss_launch(problem, keep_rows=True)
    launch.run(problem.device)
    return *result.statistics, result.row_statistics, result.counted


def ensemble_kd_value_and_grad(logits, target, *, grad_scale=None, isa="auto", **options):
    problem = Problem(logits, target, **options)
    grads = [torch.empty_like(z) for z in problem.logits]
    result, launch = loss_launch(problem, grads, grad_scale)
    launch.run(problem.device)
    return *result.statistics, grads


def ensemble_kd_value_and_grad_out(logits, target, *, grad_scale=None, out, weights_grad=None, isa="auto", **options):
    problem = Problem(logits, target, **options)
    if weights_grad is None:
        result, launch = loss_launch(problem, out, grad_scale)
        launch.run(problem.device)
        return result.statistics
    if problem.detach_ensemble and not problem.ensemble_learns:
        weights_grad.zero_()
        return ensemble_kd_value_and_grad_out(logits, target, grad_scale=grad_scale, out=out, **options)
    if problem.needs_resident:
        students, rows, _ = problem.shape
        of_rows = problem.new(rows, students)
        result, launch = loss_launch(problem, out, grad_scale, weights_grad=of_rows)
        launch.run(problem.device)
        weights_grad.copy_(of_rows if weights_grad.dim() == 2 else of_rows.sum(dim=0))
        return result.statistics
    return value_and_grad_of_weights(problem, grad_scale, out, weights_grad)


def ensemble_kd_grad_out(logits, target, *, row_statistics, counted, grad_scale, weights_grad, out, **options):
    problem = Problem(logits, target, **options)
    of_weights = problem.new(len(problem.logits) if weights_grad else 0)
    launch = gradients_launch(problem, out, grad_scale, row_statistics, counted, of_weights if weights_grad else None)
    launch.run(problem.device)
    return of_weights


def value_and_grad_of_weights(problem, grad_scale, out, weights_grad):
    """Two launches: the statistics of the rows, then from these the gradients of the logits and the weights."""
    result, launch = loss_launch(problem, keep_rows=True)
    launch.run(problem.device)
    if grad_scale is None:
        grad_scale = torch.ones((), device=problem.device)
    of_weights = problem.new(len(problem.logits))
    gradients_launch(problem, out, grad_scale, result.row_statistics, result.counted, of_weights).run(problem.device)
    weights_grad.copy_(of_weights)
    return result.statistics


def overlap(logits: Sequence[Tensor], grads: Sequence[Tensor]) -> bool:
    """Whether gradients overwrite the logits. Tensors of the meta device have no memory."""
    return any(z.data_ptr() == grad.data_ptr() != 0 for z, grad in zip(logits, grads, strict=False))


@cache
def multiprocessors(device: torch.device) -> int:
    """Number of multiprocessors of the GPU.

    It is 2 on the CPU, so that interpreted programs process several tiles. It is 132, that of an H100, on the meta
    device, whose launches are compiled and not run.
    """
    if device.type != "cuda":
        return 132 if device.type == "meta" else 2
    return torch.cuda.get_device_properties(device).multi_processor_count
