"""How the intermediate loss of one block is laid out on a GPU, from shapes and dtype alone: no tuning at run time.

Three regimes:

- "value": the loss alone. Programs take tiles of positions in turn, all channels of a tile one after the other.
- "resident": loss and gradients, few channels. A student's adapter and its gradient stay in registers.
- "tiled": loss and gradients, more channels. Tiles of each gradient have programs of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

# By bytes an element: the widest adapter that fits, on a GPU with shared memory as an H100 has; else half of it.
RESIDENT_CHANNELS = {2: 128, 4: 64}
RESIDENT_BYTES = 200 * 1024
MULTIPROCESSORS, SHARED_BYTES = 132, 227 * 1024  # of an H100 or H200, where the device is not known
LEAST = 16  # the side of the smallest tile that the matrix units take


@dataclass(frozen=True)
class FeatureKDPlan:
    """Tiles and programs of one launch. A program sees `block` positions at a time."""

    regime: str  # "value", "resident" or "tiled"
    block: int
    out: int  # pseudo teacher's channels at a time
    ins: tuple[int, ...]  # channels at a time of each student
    step: int  # "tiled": student channels at a time while the difference is made
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
    """The plan for `rows` positions, `teacher` and `students` channels and maps of `itemsize` bytes an element.

    The last two are the GPU's: multiprocessors, and the shared memory that one program may have.
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
    # Registers decide: the largest tiles that spill none, as bench/codegen/sass.py shows them.
    most = RESIDENT_CHANNELS[itemsize] if shared_bytes >= RESIDENT_BYTES else RESIDENT_CHANNELS[itemsize] // 2
    if widest <= most:
        block = min(128, max(4096 // widest, 64)) if half else min(64, 2048 // widest)
        crowded = widest == RESIDENT_CHANNELS[itemsize]  # no room for a second program, in 16 bits nor for prefetching
        warps, stages = (8 if crowded else 4), (1 if crowded and half else 2)
        a_multiprocessor = 1 if crowded else 3 if widest == LEAST else 2
        chunks = share(block, a_multiprocessor * multiprocessors)
        return FeatureKDPlan("resident", block, padded(teacher), widths, 0, chunks, warps, stages)
    block, out, width, step = (64, 64, 128, 64) if half else (32, 64, 64, 32)
    tiles = ceil_div(teacher, out) * sum(ceil_div(channels, width) for channels in students)
    chunks = max(1, min(ceil_div(rows, block), ceil_div(2 * multiprocessors, tiles)))
    return FeatureKDPlan("tiled", block, out, (width,) * len(students), step, chunks, 8, 2)


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def padded(channels: int) -> int:
    """The power of two that holds them, 16 at least."""
    return max(LEAST, 1 << (channels - 1).bit_length())
