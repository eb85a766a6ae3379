"""The intermediate loss of one block (ECCV 2020, section 3.2) without gradients: each map is read once."""

from __future__ import annotations

import triton
import triton.language as tl

from ..common.arrival import last_to_arrive
from .maps import difference, write_loss


@triton.jit(do_not_specialize=["tiles"])
def value(
    maps, teacher,  # n student maps, the pseudo teacher's, seen as [rows, channels]
    weights, biases,  # n of [C0, CJ[j]], row-major; n of [C0]
    loss, previous,  # fp32 []; fp32 [] added to it, or None
    squares,  # fp32 [programs]
    done,  # int32 [1], 0 before and after
    rows, tiles, factor,  # tiles = cdiv(rows, BLOCK); factor = 2 / (rows C0)
    PIXELS: tl.constexpr, C0: tl.constexpr, CJ: tl.constexpr, LAYOUTS: tl.constexpr, TEACHER_LAYOUT: tl.constexpr,
    BLOCK: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    # Neighbouring programs take the same positions of different students, so that the teacher's map is in the L2 cache
    # for all but the first.
    PAIRS: tl.constexpr = len(maps)
    pair = tl.program_id(0) % PAIRS
    total = 0.0
    for j in tl.static_range(PAIRS):
        if pair == j:
            total = sum_of_squares(
                maps[j], weights[j], biases[j], teacher, rows, tiles, tl.program_id(0) // PAIRS,
                tl.num_programs(0) // PAIRS,
                PIXELS, C0, CJ[j], tl.constexpr(LAYOUTS[j]), TEACHER_LAYOUT, BLOCK, OUT, IN[j], DOT,
            )  # fmt: skip
    tl.store(squares + tl.program_id(0), total)
    if last_to_arrive(done, tl.num_programs(0)):
        write_loss(loss, previous, squares, tl.num_programs(0), factor, 1024)


@triton.jit
def sum_of_squares(
    student, weight, bias, teacher, rows, tiles, chunk, chunks,
    PIXELS: tl.constexpr, C0: tl.constexpr, CJ: tl.constexpr, LAYOUT: tl.constexpr, TEACHER_LAYOUT: tl.constexpr,
    BLOCK: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """The sum of one student's D^2 over every `chunks`-th tile of positions and all channels."""
    total = tl.zeros([BLOCK], tl.float32)
    for tile in range(chunk, tiles, chunks):
        for c0 in range(0, C0, OUT):
            d = difference(
                student, weight, bias, teacher, tile * BLOCK, rows, c0,
                PIXELS, C0, CJ, LAYOUT, TEACHER_LAYOUT, BLOCK, OUT, IN, DOT,
            )  # fmt: skip
            total += tl.sum(d * d, 1)
    return tl.sum(total, 0)
