"""Layout of the kernels of the intermediate loss on a GPU, from shapes and dtype alone; nothing is tuned at run time.

There are three regimes:

- "value": the loss alone. Programs take tiles of positions in turn, with all channels of a tile in a loop.
- "resident": loss and gradients, few channels. A student's adapter and its gradient stay in registers.
- "tiled": loss and gradients, more channels. Each tile of a gradient has programs of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

# Bytes of an element -> most channels of an adapter in the resident regime, on a GPU with the shared memory of an H100.
# With less shared memory, half as many.
RESIDENT_CHANNELS = {2: 128, 4: 64}
RESIDENT_BYTES = 200 * 1024
MULTIPROCESSORS, SHARED_BYTES = 132, 227 * 1024  # those of an H100 or H200, for use without a GPU
LEAST = 16  # side of the smallest tile that the matrix units accept


@dataclass(frozen=True)
class FeatureKDPlan:
    """Tiles and programs of one launch. A program processes `block` positions at a time."""

    regime: str  # "value", "resident" or "tiled"
    block: int
    out: int  # channels of the pseudo teacher at a time
    ins: tuple[int, ...]  # for each student, its channels at a time
    step: int  # student channels at a time while the difference is computed; "tiled" only
    chunks: int  # programs that share the positions
    warps: int
    stages: int


@cache
def plan_feature_kd(
    teacher: int,
    students: tuple[int, ...],
    rows: int,
    itemsize: int,
    gradients: bool,
    multiprocessors: int = MULTIPROCESSORS,
    shared_bytes: int = SHARED_BYTES,
) -> FeatureKDPlan:
    """Plan a launch for `rows` positions and maps of `itemsize` bytes per element.

    Args:
        teacher: channels of the pseudo teacher.
        students: channels of each student.
        gradients: whether gradients are computed too.
        multiprocessors: number of them in the GPU.
        shared_bytes: shared memory that one program may have.
    """
    widths = tuple(padded(channels) for channels in students)
    widest = max(padded(teacher), *widths)
    half = itemsize == 2

    def share(block: int, programs: int) -> int:
        return max(1, min(ceil_div(rows, block), ceil_div(programs, len(students))))

    if not gradients:
        block, out = 4096 // min(widest, 64), min(padded(teacher), 64)
        ins = tuple(min(width, 64) for width in widths)
        return FeatureKDPlan("value", block, out, ins, 0, share(block, 4 * multiprocessors), 4, 2)
    # The largest tiles that do not spill registers, according to bench/codegen.
    most = RESIDENT_CHANNELS[itemsize] if shared_bytes >= RESIDENT_BYTES else RESIDENT_CHANNELS[itemsize] // 2
    if widest <= most:
        crowded = widest == RESIDENT_CHANNELS[itemsize]  # no room for a second program, nor in 16 bits for prefetching
        block = min(128, max(4096 // widest, 64)) if half else LEAST if crowded else min(64, 2048 // widest)
        warps, stages = (8 if crowded else 4), (1 if crowded and half else 2)
        a_multiprocessor = 1 if crowded else 3 if widest == LEAST else 2
        chunks = share(block, a_multiprocessor * multiprocessors)
        return FeatureKDPlan("resident", block, padded(teacher), widths, 0, chunks, warps, stages)
    block, out, width, step = (64, 64, 128, 64) if half else (32, 64, 64, 32)
    tiles = ceil_div(teacher, out) * sum(ceil_div(channels, width) for channels in students)
    chunks = max(1, min(ceil_div(rows, block), ceil_div(2 * multiprocessors, tiles)))
    return FeatureKDPlan("tiled", block, out, (width,) * len(students), step, chunks, 8, 2)


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def padded(channels: int) -> int:
    """The smallest power of two that is at least `channels` and at least 16."""
    return max(LEAST, 1 << (channels - 1).bit_length())
