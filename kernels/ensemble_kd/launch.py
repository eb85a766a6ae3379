"""The ensemble distillation loss on the GPU: launches of the kernels, and implementations of the ops.

Each call is one launch, in whichever regime (plan.py). A mean over many rows needs two more launches of PyTorch, which
count the rows. Arguments are checked in ``oekd_fast.losses``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import gcd
from typing import Any

import torch
from torch import Tensor

from ..common.counters import zeroed
from ..common.launch import Launch, interpreted
from .gradients import gradients
from .plan import MOST_ROWS_COUNTED, VECTOR_BYTES, WARP, Plan, plan_ensemble_kd, plan_gradients, power_of_2
from .resident import resident
from .row_statistics import QUADS
from .streamed import ARRIVED, streamed
from .targets import ENSEMBLE, LOGITS, PROBABILITIES, TEACHER

INTERPRETED = interpreted(resident)


@dataclass(frozen=True)
class Problem:
    """The arguments of an op, the same for all three kernels. Shapes and dtypes are those of the op's schema."""

    logits: Sequence[Tensor]
    target: Tensor | None
    ensemble_weights: Tensor | None
    temperature: float
    ce_weight: float
    kd_weight: float
    label_smoothing: float
    ignore_index: int
    mean: bool
    detach_ensemble: bool
    device_scalars: Tensor | None = None  # fp32 [3], read in place of the first three numbers, or [4]
    # Only the resident kernel supports the following arguments and a gate [B, S]; see plan.covers_objectives.
    ensemble_ce_weight: float = 0.0
    teacher_logits: Sequence[Tensor] | None = None
    mixing: Tensor | None = None
    mix_probabilities: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """S, B and C."""
        return len(self.logits), *self.logits[0].shape

    @property
    def device(self) -> torch.device:
        return self.logits[0].device

    @property
    def power(self) -> int:
        """The temperature if it is 1, 2, 3 or 4; 0 for any other, and for one in device memory."""
        return int(self.temperature) if self.device_scalars is None and self.temperature in (1.0, 2.0, 3.0, 4.0) else 0

    @property
    def ensemble_learns(self) -> bool:
        """Whether the ensemble's cross-entropy is part of the loss."""
        return self.ensemble_ce_weight != 0 or (self.device_scalars is not None and len(self.device_scalars) == 4)

    @property
    def teachers(self) -> tuple[Tensor, ...]:
        """The external teachers."""
        return tuple(self.teacher_logits or ())

    @property
    def targets(self) -> int:
        """TARGETS of the resident kernel."""
        if self.mixing is None:
            return (TEACHER if self.teachers else ENSEMBLE).value
        return (PROBABILITIES if self.mix_probabilities else LOGITS).value

    @property
    def members(self) -> int:
        """Number of members of a row: the students, the ensemble and the extra teachers."""
        students = len(self.logits)
        return students + 1 + (students if self.targets == LOGITS.value else len(self.teachers))

    @property
    def held(self) -> int:
        """Values of one class that a thread holds at a time: those of the members, and a sum of gradients."""
        return self.members + (self.ensemble_learns or self.targets == PROBABILITIES.value)

    def objective_arguments(self, weights_grad: Tensor | None) -> dict[str, Any]:
        """Arguments of the resident kernel beside those that all kernels share."""
        # The dispatcher evaluates lazy negations in all arguments but an optional list of tensors.
        weights, teachers = self.ensemble_weights, tuple(teacher.resolve_neg() for teacher in self.teachers)
        return {
            "weights_stride": 0 if weights is None else weights.stride(-1),
            "weights_row": weights.stride(0) if weights is not None and weights.dim() == 2 else None,
            "teachers": teachers,
            "teachers_row": tuple(teacher.stride(0) for teacher in teachers),
            "teachers_class": tuple(teacher.stride(1) for teacher in teachers),
            "mixing": None if self.mixing is None else self.mixing.float().contiguous(),
            "ensemble_ce_weight": self.ensemble_ce_weight if self.ensemble_learns else None,
            "weights_grad": weights_grad,
            "TARGETS": self.targets,
        }

    def kernel_arguments(self, grads: Sequence[Tensor], grad_scale: Tensor | None) -> dict[str, Any]:
        """Arguments that all kernels share, under their names in the kernels."""
        students, rows, classes = self.shape
        every = (*self.logits, *grads)
        unit = all(t.stride(1) == 1 for t in every)
        vec = vector_elements(every) if unit else 1
        return {
            "logits": tuple(self.logits),
            "logits_row": tuple(z.stride(0) // vec for z in self.logits),
            "logits_class": tuple(z.stride(1) for z in self.logits),
            "grads": tuple(grads),
            "grads_row": tuple(grad.stride(0) // vec for grad in grads),
            "grads_class": tuple(grad.stride(1) for grad in grads),
            "target": self.target,
            "target_stride": 0 if self.target is None else self.target.stride(0),
            "weights": self.ensemble_weights,
            "weights_stride": 0 if self.ensemble_weights is None else self.ensemble_weights.stride(0),
            "grad_scale": grad_scale,
            "device_scalars": self.device_scalars,
            "rows": rows,
            "temperature": self.temperature,
            "ce_weight": self.ce_weight,
            "kd_weight": self.kd_weight,
            "label_smoothing": self.label_smoothing,
            "ignore_index": self.ignore_index,
            "CLASSES": classes,
            "VEC": vec,
            "UNIT": unit,
            "WIDTH": power_of_2(self.members),
            "POWER": self.power,
            "SMOOTH": self.label_smoothing > 0.0,
            "MEAN": self.mean,
            "DETACH": self.detach_ensemble,
        }

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """An uninitialised tensor on the device of the logits."""
        return torch.empty(shape, dtype=dtype, device=self.device)


@dataclass(frozen=True)
class Loss:
    """Buffers that a launch of the loss writes, beside the gradients."""

    loss: Tensor
    ce: Tensor
    kd: Tensor
    ensemble_ce: Tensor
    correct: Tensor
    row_statistics: Tensor
    counted: Tensor

    @classmethod
    def empty(cls, problem: Problem) -> Loss:
        students, rows, _ = problem.shape
        new = problem.new
        return cls(
            loss=new(),
            ce=new(students),
            kd=new(students),
            ensemble_ce=new(),
            correct=new(students + 1, dtype=torch.int64),
            row_statistics=new(rows, QUADS.value, power_of_2(problem.members), 4),
            counted=new(),
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
) -> tuple[Loss, Launch]:
    """Prepare a launch of the loss, and the buffers that it writes.

    Args:
        grads: S buffers [B, C] for the gradients, or () for the loss alone.
        grad_scale: one element that multiplies the gradients; None for 1.
        plan: layout of the launch; None for the one of ``plan_ensemble_kd``.
        weights_grad: fp32 [B, S] buffer for each row's part of dL/dw; resident plans only.
    """
    students, rows, classes = problem.shape
    if plan is None:
        plan = plan_ensemble_kd(problem.held - 1, classes, problem.logits[0].element_size())
    result = Loss.empty(problem)
    arguments = problem.kernel_arguments(grads, grad_scale) | vars(result)
    threads = WARP * plan.warps
    arguments |= {
        "BLOCK": plan.block,
        "THREADS": plan.threads,
        "RUN": plan.run(arguments["VEC"]),
        "number": None,
        "LABELS": plan.labels(rows),
        "SUM_ROWS": max(1, 8 * threads // arguments["WIDTH"]),
        "ENTRIES": max(1, 16 * threads // arguments["WIDTH"]),
    }
    if grads and problem.mean and problem.target is not None and rows > MOST_ROWS_COUNTED:
        arguments["number"] = (problem.target != problem.ignore_index).sum()
    options = {"num_warps": plan.warps} | ({"maxnreg": plan.registers} if plan.registers else {})
    at_once = multiprocessors(problem.device) * plan.programs_per_sm
    if plan.regime == "streamed":
        chunks = -(-classes // (plan.tiles * plan.block))
        passes = 2 if grads else 1
        programs = max(1, min(at_once, rows * chunks * passes))
        arguments |= {
            "chunk_statistics": problem.new(rows, chunks, QUADS.value, arguments["WIDTH"], 4),
            "partials": problem.new(programs, 4 * arguments["WIDTH"]),
            "counters": zeroed(ARRIVED.value + rows, problem.device),
            # A row's gradients are due after about as many tickets as there are programs.
            "lag": programs // (passes * chunks) + 1,
            "TILES": plan.tiles,
        }
        return result, Launch(streamed, programs, arguments, options)
    programs = max(1, min(at_once, -(-rows // plan.rows)))
    arguments |= problem.objective_arguments(weights_grad) | {
        "partials": problem.new(programs, 4 * arguments["WIDTH"]),
        "done": zeroed(1, problem.device),
        "ROWS": plan.rows,
    }
    return result, Launch(resident, programs, arguments, options)


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
    arguments = problem.kernel_arguments(grads, grad_scale)
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
    return Launch(gradients, programs, arguments, {"num_warps": plan.warps})


# Implementations of the ops in oekd_fast.losses.schemas. Only the CPU kernel reads the argument `isa`.


def ensemble_kd_value(logits, target, *, isa="auto", **options):
    problem = Problem(logits, target, **options)
    result, launch = loss_launch(problem)
    launch.run(problem.device)
    return result.statistics


def ensemble_kd_value_and_rows(logits, target, **options):
    problem = Problem(logits, target, **options)
    result, launch = loss_launch(problem)
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
    if needs_resident(problem):
        of_rows = problem.new(len(problem.logits[0]), len(problem.logits))
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


def needs_resident(problem: Problem) -> bool:
    """Whether only the resident kernel supports the problem."""
    gate = problem.ensemble_weights is not None and problem.ensemble_weights.dim() == 2
    return gate or problem.ensemble_learns or problem.targets != ENSEMBLE.value


def value_and_grad_of_weights(problem, grad_scale, out, weights_grad):
    """Two launches: the statistics of the rows, then from these the gradients of the logits and the weights."""
    result, launch = loss_launch(problem)
    launch.run(problem.device)
    if grad_scale is None:
        grad_scale = torch.ones((), device=problem.device)
    of_weights = problem.new(len(problem.logits))
    gradients_launch(problem, out, grad_scale, result.row_statistics, result.counted, of_weights).run(problem.device)
    weights_grad.copy_(of_weights)
    return result.statistics


def vector_elements(tensors: Sequence[Tensor]) -> int:
    """Number of elements, at most 16 bytes, that divides every row stride."""
    return gcd(VECTOR_BYTES // tensors[0].element_size(), *(tensor.stride(0) for tensor in tensors))


@cache
def multiprocessors(device: torch.device) -> int:
    """Number of multiprocessors of the GPU; 2 without a GPU, so that interpreted programs process several tiles."""
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count
