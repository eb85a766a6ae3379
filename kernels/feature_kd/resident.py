"""Loss and gradients of the intermediate loss, for adapters that fit the registers of one program.

Each map is read once and each gradient of a map written once. A program keeps the adapter of one student and
accumulates dW = D^T X over its share of the positions. The last program of each group adds the shares of the group, and
the last group of a student adds the sums of the groups.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..common.arrival import last_to_arrive
from .maps import (
    add_up,
    gradient_scale,
    load_bias,
    load_map,
    load_weight,
    store_map,
    subtract,
    write_gradients,
    write_loss,
)


@triton.jit(do_not_specialize=["tiles", "group"])
def resident(
    maps, teacher,  # n student maps, the pseudo teacher's, seen as [rows, channels]
    weights, biases,  # n of [C0, CJ[j]], row-major; n of [C0]
    map_grads, weight_grads, bias_grads,  # like the maps, weights and biases
    grad_scale,  # one element, or None for 1
    loss, previous,  # fp32 []; fp32 [] added to it, or None
    shares,  # fp32 [chunks + groups, SHARES[-1]]: for each student dW [OUT, IN[j]] and db [OUT]
    squares,  # fp32 [programs]
    done,  # int32 [n groups + n + 1], 0 before and after
    rows, tiles, group, factor,  # tiles = cdiv(rows, BLOCK); chunks a group; factor = 2 / (rows C0)
    PIXELS: tl.constexpr, C0: tl.constexpr, CJ: tl.constexpr, LAYOUTS: tl.constexpr, GRAD_LAYOUTS: tl.constexpr,
    TEACHER_LAYOUT: tl.constexpr, SHARES: tl.constexpr,
    BLOCK: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr, PIECE: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    # Neighbouring programs take the same positions of different students, so that the teacher's map is in the L2 cache
    # for all but the first.
    PAIRS: tl.constexpr = len(maps)
    pair, chunk = tl.program_id(0) % PAIRS, tl.program_id(0) // PAIRS
    chunks = tl.num_programs(0) // PAIRS
    groups = tl.cdiv(chunks, group)
    scale = gradient_scale(grad_scale, factor)
    own = shares + chunk.to(tl.int64) * SHARES[PAIRS]
    for j in tl.static_range(PAIRS):
        if pair == j:
            total = accumulate(
                maps[j], weights[j], biases[j], teacher, map_grads[j], own + SHARES[j], rows, tiles, chunk, chunks,
                scale,
                PIXELS, C0, CJ[j], tl.constexpr(LAYOUTS[j]), tl.constexpr(GRAD_LAYOUTS[j]), TEACHER_LAYOUT,
                BLOCK, OUT, IN[j], DOT,
            )  # fmt: skip
            tl.store(squares + tl.program_id(0), total)

    first = chunk // group * group
    members = tl.minimum(group, chunks - first)
    if last_to_arrive(done + pair * groups + chunk // group, members):
        of_chunks = shares + first.to(tl.int64) * SHARES[PAIRS]
        of_groups = shares + chunks.to(tl.int64) * SHARES[PAIRS]
        for j in tl.static_range(PAIRS):
            if pair == j:
                for at in range(0, SHARES[j + 1] - SHARES[j], PIECE):
                    e = at + tl.arange(0, PIECE)
                    inside = e < SHARES[j + 1] - SHARES[j]
                    e += SHARES[j]
                    total = add_up(of_chunks + e, inside, members, SHARES[PAIRS], PIECE)
                    tl.store(of_groups + (chunk // group) * SHARES[PAIRS] + e, total, mask=inside)
        if last_to_arrive(done + PAIRS * groups + pair, groups):
            for j in tl.static_range(PAIRS):
                if pair == j:
                    write_gradients(
                        weight_grads[j], bias_grads[j], of_groups + SHARES[j], groups, 0, 0, scale, SHARES[PAIRS],
                        C0, CJ[j], OUT, IN[j], PIECE,
                    )  # fmt: skip
            if last_to_arrive(done + PAIRS * groups + PAIRS, PAIRS):
                write_loss(loss, previous, squares, tl.num_programs(0), factor, 1024)


@triton.jit
def accumulate(
    student, weight, bias, teacher, grad, share, rows, tiles, chunk, chunks, scale,
    PIXELS: tl.constexpr, C0: tl.constexpr, CJ: tl.constexpr, LAYOUT: tl.constexpr, GRAD_LAYOUT: tl.constexpr,
    TEACHER_LAYOUT: tl.constexpr, BLOCK: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Write one student's dX at every `chunks`-th tile and its share of dW and db; return its sum of squares.

    dX = dA W,  dW = dA^T X,  db = sum of dA over positions, with dA = scale * D. The matrix products use D in 16 bits
    and are scaled afterwards: 2 / (rows C0) is so small that dA would underflow in fp16. The share is not scaled yet.
    """
    w = load_weight(weight, 0, 0, C0, CJ, OUT, IN, DOT)
    b = load_bias(bias, 0, C0, OUT)
    dw = tl.zeros([OUT, IN], tl.float32)
    db = tl.zeros([OUT], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    for tile in tl.range(chunk, tiles, chunks, disable_licm=True):
        first = tile * BLOCK
        x = load_map(student, first, rows, 0, PIXELS, CJ, LAYOUT, BLOCK, IN).to(DOT)
        t = load_map(teacher, first, rows, 0, PIXELS, C0, TEACHER_LAYOUT, BLOCK, OUT)
        adapted = tl.dot(x, tl.trans(w), input_precision="tf32x3")
        d = subtract(adapted, b, t, first, rows, BLOCK)
        squares += tl.sum(d * d, 1)
        db += tl.sum(d, 0)
        d = d.to(DOT)
        dx = tl.dot(d, w, input_precision="tf32x3") * scale
        store_map(grad, dx, first, rows, 0, PIXELS, CJ, GRAD_LAYOUT, BLOCK, IN)
        dw = tl.dot(tl.trans(d), x, dw, input_precision="tf32x3")
    o, i = tl.arange(0, OUT), tl.arange(0, IN)
    tl.store(share + o[:, None] * IN + i[None, :], dw)
    tl.store(share + OUT * IN + o, db)
    return tl.sum(squares, 0)
