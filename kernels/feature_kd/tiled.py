"""Loss and gradients of the intermediate loss for many channels: one launch with two kinds of program.

A program of the first kind computes a tile of an adapter's gradient over a share of the positions, one of the second
kind a tile of a map's gradient. Both compute the difference again, tile by tile, since it is never stored. So maps are
read twice or more, mostly from the L2 cache, and products are repeated for every IN student channels.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..common.arrival import last_to_arrive
from .maps import (
    difference,
    gradient_scale,
    load_map,
    load_weight,
    store_map,
    write_gradients,
    write_loss,
)


@triton.jit(do_not_specialize=["tiles", "chunks"])
def tiled(
    maps, teacher,  # n student maps, the pseudo teacher's, seen as [rows, channels]
    weights, biases,  # n of [C0, CJ[j]], row-major; n of [C0]
    map_grads, weight_grads, bias_grads,  # like the maps, weights and biases
    grad_scale,  # one element, or None for 1
    loss, previous,  # fp32 []; fp32 [] added to it, or None
    shares,  # fp32 [weight tiles, chunks, OUT * (IN + 1)]: dW [OUT, IN] and db [OUT] of a tile
    squares,  # fp32 [n, tiles]
    done,  # int32 [weight tiles + 1], 0 before and after
    rows, tiles, chunks, factor,  # tiles = cdiv(rows, BLOCK); shares of the positions; factor = 2 / (rows C0)
    PIXELS: tl.constexpr, C0: tl.constexpr, CJ: tl.constexpr, LAYOUTS: tl.constexpr, GRAD_LAYOUTS: tl.constexpr,
    TEACHER_LAYOUT: tl.constexpr, INS: tl.constexpr,  # weight tiles of the students before j: INS[j] * OUTS
    BLOCK: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr, STEP: tl.constexpr, PIECE: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    PAIRS: tl.constexpr = len(maps)
    OUTS: tl.constexpr = (C0 + OUT - 1) // OUT
    SIZE: tl.constexpr = OUT * (IN + 1)
    WEIGHT_TILES: tl.constexpr = INS[PAIRS] * OUTS
    scale = gradient_scale(grad_scale, factor)
    program = tl.program_id(0)

    # The programs that take the longest start first.
    if program < WEIGHT_TILES * chunks:
        tile, chunk = program // chunks, program % chunks
        c0 = tile % OUTS * OUT
        share = shares + (program * SIZE).to(tl.int64)
        for j in tl.static_range(PAIRS):
            if (tile >= INS[j] * OUTS) & (tile < INS[j + 1] * OUTS):
                cj = (tile // OUTS - INS[j]) * IN
                weight_share(
                    maps[j], weights[j], biases[j], teacher, share, rows, tiles, chunk, chunks, c0, cj,
                    PIXELS, C0, CJ[j], tl.constexpr(LAYOUTS[j]), TEACHER_LAYOUT, BLOCK, OUT, IN, STEP, DOT,
                )  # fmt: skip
        if last_to_arrive(done + tile, chunks):
            first_share = shares + (tile * chunks).to(tl.int64) * SIZE
            for j in tl.static_range(PAIRS):
                if (tile >= INS[j] * OUTS) & (tile < INS[j + 1] * OUTS):
                    cj = (tile // OUTS - INS[j]) * IN
                    write_gradients(
                        weight_grads[j], bias_grads[j], first_share, chunks, c0, cj, scale, SIZE,
                        C0, CJ[j], OUT, IN, PIECE,
                    )  # fmt: skip
    else:
        # Neighbouring programs take the same positions, so that the maps are in the L2 cache for all but the first.
        program -= WEIGHT_TILES * chunks
        tile, column = program // INS[PAIRS], program % INS[PAIRS]
        for j in tl.static_range(PAIRS):
            if (column >= INS[j]) & (column < INS[j + 1]):
                total = map_gradient(
                    maps[j], weights[j], biases[j], teacher, map_grads[j], rows, tile * BLOCK,
                    (column - INS[j]) * IN, scale,
                    PIXELS, C0, CJ[j], tl.constexpr(LAYOUTS[j]), tl.constexpr(GRAD_LAYOUTS[j]), TEACHER_LAYOUT,
                    BLOCK, OUT, IN, STEP, DOT,
                )  # fmt: skip
                if column == INS[j]:
                    tl.store(squares + j * tiles + tile, total)
        if last_to_arrive(done + WEIGHT_TILES, tiles * INS[PAIRS]):
            write_loss(loss, previous, squares, PAIRS * tiles, factor, 1024)


@triton.jit
def weight_share(
    student, weight, bias, teacher, share, rows, tiles, chunk, chunks, c0, cj,
    PIXELS: tl.constexpr, C0: tl.constexpr, CJ: tl.constexpr, LAYOUT: tl.constexpr, TEACHER_LAYOUT: tl.constexpr,
    BLOCK: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr, STEP: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Store D^T X and the sum of D over every `chunks`-th tile of positions, at the channels from (c0, cj)."""
    dw = tl.zeros([OUT, IN], tl.float32)
    db = tl.zeros([OUT], tl.float32)
    for tile in tl.range(chunk, tiles, chunks, disable_licm=True):
        d = difference(
            student, weight, bias, teacher, tile * BLOCK, rows, c0,
            PIXELS, C0, CJ, LAYOUT, TEACHER_LAYOUT, BLOCK, OUT, STEP, DOT,
        )  # fmt: skip
        db += tl.sum(d, 0)
        x = load_map(student, tile * BLOCK, rows, cj, PIXELS, CJ, LAYOUT, BLOCK, IN).to(DOT)
        dw = tl.dot(tl.trans(d.to(DOT)), x, dw, input_precision="tf32x3")
    o, i = tl.arange(0, OUT), tl.arange(0, IN)
    tl.store(share + o[:, None] * IN + i[None, :], dw)
    tl.store(share + OUT * IN + o, db)


@triton.jit
def map_gradient(
    student, weight, bias, teacher, grad, rows, first, cj, scale,
    PIXELS: tl.constexpr, C0: tl.constexpr, CJ: tl.constexpr, LAYOUT: tl.constexpr, GRAD_LAYOUT: tl.constexpr,
    TEACHER_LAYOUT: tl.constexpr, BLOCK: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr, STEP: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """Write dX = scale * D W at positions from `first` and channels from `cj`. Return the sum of all channels' D^2."""
    dx = tl.zeros([BLOCK, IN], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    for c0 in tl.range(0, C0, OUT, disable_licm=True):
        d = difference(
            student, weight, bias, teacher, first, rows, c0,
            PIXELS, C0, CJ, LAYOUT, TEACHER_LAYOUT, BLOCK, OUT, STEP, DOT,
        )  # fmt: skip
        squares += tl.sum(d * d, 1)
        dx = tl.dot(d.to(DOT), load_weight(weight, c0, cj, C0, CJ, OUT, IN, DOT), dx, input_precision="tf32x3")
    store_map(grad, dx * scale, first, rows, cj, PIXELS, CJ, GRAD_LAYOUT, BLOCK, IN)
    return tl.sum(squares, 0)
