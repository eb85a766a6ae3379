"""The intermediate loss of one block on the GPU: launches of the kernels, and the function that the ops call.

One launch serves up to STUDENTS_A_LAUNCH students. Arguments are checked in ``oekd_fast.losses.feature_kd``.
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

STUDENTS_A_LAUNCH = 8  # a kernel holds separate code for each student; more students take another launch
INTERPRETED = interpreted(value)
# Buffers for the gradients: those of the maps, dense; those of the weights [C0, C_j] and biases [C0], contiguous.
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
    """Compute the loss of one block, and its gradients if `out` is given.

    Args:
        maps: a map [B, C_j, H, W] of each student.
        teacher: the pseudo teacher's map [B, C0, H, W].
        weights: [C0, C_j] or [C0, C_j, 1, 1] for each student.
        biases: [C0] for each student.
        out: buffers for the gradients.
        grad_scale: one element that multiplies the gradients; None for 1.
        previous: fp32 scalar added to the loss, or None.

    Returns:
        The loss, an fp32 scalar.
    """
    loss = torch.empty((), dtype=torch.float32, device=teacher.device)
    if teacher.numel() == 0:  # the mean of no elements is NaN, as in PyTorch
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
    """Prepare one launch for 1 to STUDENTS_A_LAUNCH students; arguments as :func:`feature_kd_value`.

    Args:
        loss: fp32 scalar to be written.
        plan: layout of the launch; None for the one of ``plan_feature_kd``.
    """
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

    # Triton's interpreter would multiply bf16 numbers as integers.
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
    """Return the map, or a contiguous copy if H and W cannot be read as one axis with a single stride."""
    height, width = x.shape[2:]
    is_one_axis = height == 1 or width == 1 or x.stride(2) == width * x.stride(3)
    # Offsets within a tile, which spans at most 256 // (H W) + 2 images, must fit 32 bits.
    fits_32_bits = (256 // (height * width) + 2) * max(x.stride()) < 2**31
    return x if is_one_axis and fits_32_bits else x.contiguous()


def layout(x: Tensor) -> tuple[int, int, int]:
    """Strides of images, positions and channels. An axis of one element gets the stride of a dense map."""
    batch, channels, height, width = x.shape
    image, channel, row, pixel = x.stride()
    position = pixel if width > 1 else row
    if height * width == 1:
        position = image
    return (height * width * position if batch == 1 else image), position, (1 if channels == 1 else channel)


@cache
def _gpu(device: torch.device) -> tuple[int, int]:
    """Number of multiprocessors, and bytes of shared memory that one program may have."""
    if device.type != "cuda":
        return MULTIPROCESSORS, SHARED_BYTES
    gpu = torch.cuda.get_device_properties(device)
    return gpu.multi_processor_count, gpu.shared_memory_per_block_optin
