"""The intermediate loss of one block on the GPU, one launch for all students: launchers, and what the ops call.

Arguments are checked in ``oekd_fast.losses.feature_kd``. Kernels: value, resident, tiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from math import isqrt

import torch
import triton.language as tl
from torch import Tensor

from ..common.counters import zeroed
from ..common.launch import Launch, interpreted
from .plan import MULTIPROCESSORS, SHARED_BYTES, FeatureKDPlan, ceil_div, plan_feature_kd
from .resident import resident
from .tiled import tiled
from .value import value

STUDENTS_A_LAUNCH = 8  # each is code of its own within a kernel; more take another launch
INTERPRETED = interpreted(value)
# Buffers for the gradients: of the maps, dense, and of the adapters [C0, C_j] and [C0], contiguous.
Gradients = tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]
_TRITON = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def feature_kd_value(
    maps: Sequence[Tensor],
    teacher: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    out: Gradients | None = None,
    grad_scale: Tensor | None = None,
    previous: Tensor | None = None,
) -> Tensor:
    """Loss of one block, fp32, added to `previous`; where `out` is given, grad_scale times the gradients go there."""
    loss = torch.empty((), dtype=torch.float32, device=teacher.device)
    if teacher.numel() == 0:  # the mean of nothing, as PyTorch has it
        for grad in (*out[1], *out[2]) if out else ():
            grad.zero_()
        return loss.fill_(float("nan"))
    for first in range(0, len(maps), STUDENTS_A_LAUNCH):
        some = slice(first, first + STUDENTS_A_LAUNCH)
        if first:
            previous, loss = loss, torch.empty_like(loss)
        feature_kd_launch(
            maps[some],
            teacher,
            weights[some],
            biases[some],
            loss=loss,
            previous=previous,
            out=out and tuple(part[some] for part in out),
            grad_scale=grad_scale,
        ).run(teacher.device)
    return loss


def feature_kd_launch(
    maps: Sequence[Tensor],
    teacher: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    loss: Tensor,
    previous: Tensor | None = None,
    out: Gradients | None = None,
    grad_scale: Tensor | None = None,
    plan: FeatureKDPlan | None = None,
) -> Launch:
    """One launch over one to STUDENTS_A_LAUNCH students: the loss, and the gradients where buffers are given."""
    device, n = teacher.device, len(maps)
    batch, c0, height, width = teacher.shape
    pixels = height * width
    rows = batch * pixels
    channels = tuple(x.shape[1] for x in maps)
    if plan is None:
        plan = plan_feature_kd(c0, channels, rows, teacher.element_size(), out is not None, *_gpu(device))
    maps, teacher = [one_axis(x) for x in maps], one_axis(teacher)
    tiles = ceil_div(rows, plan.block)

    def new(count: int) -> Tensor:
        return torch.empty(count, dtype=torch.float32, device=device)

    # The interpreter multiplies the bits of bf16 numbers as integers.
    dot = torch.float32 if INTERPRETED and teacher.dtype == torch.bfloat16 else teacher.dtype
    arguments = {
        "maps": tuple(maps), "teacher": teacher,
        "weights": tuple(weight.reshape(weight.shape[:2]).contiguous() for weight in weights),
        "biases": tuple(bias.contiguous() for bias in biases),
        "loss": loss, "previous": previous, "rows": rows, "tiles": tiles, "factor": 2 / (rows * c0),
        "PIXELS": pixels, "C0": c0, "CJ": channels, "LAYOUTS": tuple(map(layout, maps)),
        "TEACHER_LAYOUT": layout(teacher), "BLOCK": plan.block, "OUT": plan.out, "DOT": _TRITON[dot],
    }  # fmt: skip
    options = {"num_warps": plan.warps, "num_stages": plan.stages}
    if out is None:
        programs = plan.chunks * n
        arguments |= {"squares": new(programs), "done": zeroed(1, device), "IN": plan.ins}
        return Launch(value, programs, arguments, options)

    arguments |= {
        "map_grads": tuple(out[0]), "weight_grads": tuple(out[1]), "bias_grads": tuple(out[2]),
        "grad_scale": grad_scale, "GRAD_LAYOUTS": tuple(map(layout, out[0])),
        "PIECE": 256 * plan.warps,
    }  # fmt: skip
    if plan.regime == "resident":
        programs = plan.chunks * n
        group = isqrt(plan.chunks - 1) + 1
        groups = ceil_div(plan.chunks, group)
        sizes = [plan.out * (width + 1) for width in plan.ins]
        arguments |= {
            "shares": new((plan.chunks + groups) * sum(sizes)), "squares": new(programs),
            "done": zeroed(n * groups + n + 1, device), "group": group, "IN": plan.ins,
            "SHARES": (0, *accumulate(sizes)),
        }  # fmt: skip
        return Launch(resident, programs, arguments, options)

    width = plan.ins[0]
    ins = (0, *accumulate(ceil_div(number, width) for number in channels))
    weight_tiles = ins[n] * ceil_div(c0, plan.out)
    arguments |= {
        "shares": new(weight_tiles * plan.chunks * plan.out * (width + 1)), "squares": new(n * tiles),
        "done": zeroed(weight_tiles + 1, device), "chunks": plan.chunks, "INS": ins, "IN": width, "STEP": plan.step,
    }  # fmt: skip
    return Launch(tiled, weight_tiles * plan.chunks + tiles * ins[n], arguments, options)


def one_axis(x: Tensor) -> Tensor:
    """The map, or a contiguous copy where no one stride walks over H and W."""
    height, width = x.shape[2:]
    walked = height == 1 or width == 1 or x.stride(2) == width * x.stride(3)
    # Places within a tile, which holds a part of 256 // (H W) + 2 images at most, are 32 bits wide.
    near = (256 // (height * width) + 2) * max(x.stride()) < 2**31
    return x if walked and near else x.contiguous()


def layout(x: Tensor) -> tuple[int, int, int]:
    """Strides over images, over positions and over channels; axes of one element get what suits the others."""
    batch, channels, height, width = x.shape
    image, channel, row, pixel = x.stride()
    position = pixel if width > 1 else row
    if height * width == 1:
        position = image
    return (height * width * position if batch == 1 else image), position, (1 if channels == 1 else channel)


@cache
def _gpu(device: torch.device) -> tuple[int, int]:
    if device.type != "cuda":
        return MULTIPROCESSORS, SHARED_BYTES
    gpu = torch.cuda.get_device_properties(device)
    return gpu.multi_processor_count, gpu.shared_memory_per_block_optin
