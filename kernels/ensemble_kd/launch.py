"""The ensemble distillation loss of S students on the GPU: launchers, and implementations of the ops.

One launch a call, whatever the regime (tiling.py); two of PyTorch's before it where a mean is over so many rows that
the programs would take long to count them. Arguments are checked in ``oekd_fast.losses.ensemble_kd``.
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
    """The arguments of an op, the same for all three kernels."""

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
    device_scalars: Tensor | None = None  # fp32 [3], read by the kernels in place of the first three numbers, or [4]
    # These, and weights [rows, S], only where the plan is resident: see tiling.covers_objectives.
    ensemble_ce_weight: float = 0.0
    teacher_logits: Tensor | None = None
    mixing: Tensor | None = None
    mix_probabilities: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """S, B, C."""
        return len(self.logits), *self.logits[0].shape

    @property
    def device(self) -> torch.device:
        return self.logits[0].device

    @property
    def power(self) -> int:
        """The temperature where it is a small integer; 0 for any other, and for one that only the device knows."""
        return int(self.temperature) if self.device_scalars is None and self.temperature in (1.0, 2.0, 3.0, 4.0) else 0

    @property
    def ensemble_learns(self) -> bool:
        return self.ensemble_ce_weight != 0 or (self.device_scalars is not None and len(self.device_scalars) == 4)

    @property
    def targets(self) -> int:
        """TARGETS of the resident kernel."""
        if self.mixing is None:
            return (ENSEMBLE if self.teacher_logits is None else TEACHER).value
        return (PROBABILITIES if self.mix_probabilities else LOGITS).value

    @property
    def members(self) -> int:
        """The students, the ensemble and the other teachers."""
        others = len(self.logits) if self.targets == LOGITS.value else int(self.teacher_logits is not None)
        return len(self.logits) + 1 + others

    @property
    def held(self) -> int:
        """Values of a class that a thread holds side by side: the members', and what gradients are gathered in."""
        return self.members + (self.ensemble_learns or self.targets == PROBABILITIES.value)

    def objective_arguments(self, weights_grad: Tensor | None) -> dict[str, Any]:
        """Of the resident kernel, beside those that all share."""
        weights, teacher = self.ensemble_weights, self.teacher_logits
        return {
            "weights_stride": 0 if weights is None else weights.stride(-1),
            "weights_row": weights.stride(0) if weights is not None and weights.dim() == 2 else None,
            "teacher": teacher,
            "teacher_row": None if teacher is None else teacher.stride(0),
            "teacher_class": None if teacher is None else teacher.stride(1),
            "mixing": None if self.mixing is None else self.mixing.float().contiguous(),
            "ensemble_ce_weight": self.ensemble_ce_weight if self.ensemble_learns else None,
            "weights_grad": weights_grad,
            "TARGETS": self.targets,
        }

    def kernel_arguments(self, grads: Sequence[Tensor], grad_scale: Tensor | None) -> dict[str, Any]:
        """By the names that the kernels share."""
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
            "values": self.device_scalars,
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
        return torch.empty(shape, dtype=dtype, device=self.device)


@dataclass(frozen=True)
class Loss:
    """What a launch of the loss writes, beside the gradients."""

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
    """The loss, and its gradients into S buffers `grads` [B, C] if there are any.

    ``weights_grad``: fp32 [B, S] for each row's part of dL/dw; resident plans alone.
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
            # A row's gradients come up when all programs together have taken about as many tickets as they are.
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
    """The gradients from what a launch of the loss left behind."""
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


# -- the ops, with the schemas of oekd_fast.losses.schemas; `isa` is the CPU's


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
    """Whether only the resident kernel computes it."""
    gate = problem.ensemble_weights is not None and problem.ensemble_weights.dim() == 2
    return gate or problem.ensemble_learns or problem.targets != ENSEMBLE.value


def value_and_grad_of_weights(problem, grad_scale, out, weights_grad):
    """Two launches: the gradient of the weights comes with those that are made of the rows' statistics."""
    result, launch = loss_launch(problem)
    launch.run(problem.device)
    if grad_scale is None:
        grad_scale = torch.ones((), device=problem.device)
    of_weights = problem.new(len(problem.logits))
    gradients_launch(problem, out, grad_scale, result.row_statistics, result.counted, of_weights).run(problem.device)
    weights_grad.copy_(of_weights)
    return result.statistics


def vector_elements(tensors: Sequence[Tensor]) -> int:
    """Elements by which every row's place is divisible, 16 bytes at most."""
    return gcd(VECTOR_BYTES // tensors[0].element_size(), *(tensor.stride(0) for tensor in tensors))


@cache
def multiprocessors(device: torch.device) -> int:
    """2 where kernels are interpreted, or only compiled: programs then take turns, as on a GPU."""
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count
