"""Gradients of BatchNorm, residual and ReLU: sums over all rows, then the gradient of the input, a launch each."""

from __future__ import annotations

import triton
import triton.language as tl

from ..common.arrival import last_to_arrive
from .tiles import fold, load_channels, masked, normalised, places, share_of_work

# Sources of the mask of positive outputs.
NONE = tl.constexpr(0)  # the gradient is masked already, or there is no ReLU
FROM_X = tl.constexpr(1)
FROM_Y = tl.constexpr(2)


@triton.jit
def load_gradient(dy, x, y, start, at, inside, mean, scale, bias, MASK: tl.constexpr):
    """Load x and the gradient of the sum before the ReLU, as float32 [BLOCK]."""
    wide = tl.load(x + start + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(dy + start + at, mask=inside, other=0.0).to(tl.float32)
    if MASK == FROM_X:
        g = masked(g, normalised(wide, mean, scale, bias), x.dtype.element_ty)
    elif MASK == FROM_Y:
        g = masked(g, tl.load(y + start + at, mask=inside, other=0.0).to(tl.float32), x.dtype.element_ty)
    return wide, g


@triton.jit(do_not_specialize=["rows", "tiles", "channels", "vectors"])
def gradient_sums(
    dy, x, y,  # [rows, channels]; y may be None
    residual_grad,  # [rows, channels], or None
    mean, rstd, weight, bias,  # fp32 [channels]
    weight_grad, bias_grad,  # fp32 [channels]
    coefficients,  # fp32 [3, channels]: scale, slope and offset of `gradient`
    shares,  # fp32 [chunks, 2, channels]: sums of g and of g (x - mean)
    done,  # int32 [columns], 0 before and after
    rows, elements, tiles, channels, vectors,  # elements = rows channels; a tile is vectors VECTOR elements
    VECTOR: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of weight and bias, and of the residual: g, the masked gradient of the output."""
    step = vectors * VECTOR
    chunk, chunks, column = share_of_work(channels, BLOCK)
    m = load_channels(mean, column, channels, BLOCK)
    scale, b = 0.0, 0.0
    if MASK == FROM_X:
        scale = load_channels(weight, column, channels, BLOCK) * load_channels(rstd, column, channels, BLOCK)
        b = load_channels(bias, column, channels, BLOCK)
    sums = tl.zeros([BLOCK], tl.float32)
    sums_x = tl.zeros([BLOCK], tl.float32)
    for tile in range(chunk, tiles, chunks):
        start, at, inside = places(tile, column, elements, step, BLOCK)
        wide, g = load_gradient(dy, x, y, start, at, inside, m, scale, b, MASK)
        if residual_grad is not None:
            tl.store(residual_grad + start + at, g.to(residual_grad.dtype.element_ty), mask=inside)
        g = tl.where(inside, g, 0.0)
        sums += g
        sums_x += tl.where(inside, g * (wide - m), 0.0)

    tile_rows = step // channels
    here = (tl.arange(0, ROWS) < tile_rows)[:, None]
    folded = tl.where(here, fold(sums, channels, tile_rows, ROWS, WIDTH), 0.0)
    folded_x = tl.where(here, fold(sums_x, channels, tile_rows, ROWS, WIDTH), 0.0)
    c = column * BLOCK + tl.arange(0, WIDTH)
    share = shares + tl.cast(chunk, tl.int64) * (2 * channels) + c
    tl.store(share, tl.sum(folded, 0), mask=c < channels)
    tl.store(share + channels, tl.sum(folded_x, 0), mask=c < channels)

    if last_to_arrive(done + column, chunks):
        sum_g, sum_g_x = add_shares(shares, chunks, c, channels, BLOCK // WIDTH, WIDTH)
        r = tl.load(rstd + c, mask=c < channels, other=0.0)
        factor = tl.load(weight + c, mask=c < channels, other=0.0) * r
        count = rows.to(tl.float32)
        tl.store(bias_grad + c, sum_g, mask=c < channels)
        tl.store(weight_grad + c, sum_g_x * r, mask=c < channels)
        tl.store(coefficients + c, factor, mask=c < channels)
        tl.store(coefficients + channels + c, factor * r * r * (sum_g_x / count), mask=c < channels)
        tl.store(coefficients + 2 * channels + c, factor * (sum_g / count), mask=c < channels)


@triton.jit
def add_shares(shares, chunks, c, channels, TOGETHER: tl.constexpr, WIDTH: tl.constexpr):
    """Add the shares of all programs, TOGETHER at a time."""
    first_sums = tl.zeros([TOGETHER, WIDTH], tl.float32)
    second_sums = tl.zeros([TOGETHER, WIDTH], tl.float32)
    for first in range(0, chunks, TOGETHER):
        chunk = first + tl.arange(0, TOGETHER)
        at = shares + chunk.to(tl.int64)[:, None] * (2 * channels) + c[None, :]
        inside = (chunk < chunks)[:, None] & (c < channels)[None, :]
        # Other programs of this launch wrote these values, so they are not read from the L1 cache.
        first_sums += tl.load(at, mask=inside, other=0.0, cache_modifier=".cg")
        second_sums += tl.load(at + channels, mask=inside, other=0.0, cache_modifier=".cg")
    return tl.sum(first_sums, 0), tl.sum(second_sums, 0)


@triton.jit(do_not_specialize=["tiles", "channels", "vectors"])
def gradient(
    dy, x, y, grad,  # [rows, channels]; y may be None
    mean, bias,  # fp32 [channels]
    coefficients,  # fp32 [3, channels], from `gradient_sums`
    elements, tiles, channels, vectors,  # elements = rows channels; a tile is vectors VECTOR elements
    VECTOR: tl.constexpr, BLOCK: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """dx = weight rstd (g - mean(g) - xhat mean(g xhat)), with xhat = (x - mean) rstd and means over all rows.

    That is g scale - ((x - mean) slope + offset).
    """
    step = vectors * VECTOR
    chunk, chunks, column = share_of_work(channels, BLOCK)
    m = load_channels(mean, column, channels, BLOCK)
    scale = load_channels(coefficients, column, channels, BLOCK)
    slope = load_channels(coefficients + channels, column, channels, BLOCK)
    offset = load_channels(coefficients + 2 * channels, column, channels, BLOCK)
    b = 0.0
    if MASK == FROM_X:
        b = load_channels(bias, column, channels, BLOCK)
    for back in range(chunk, tiles, chunks):
        start, at, inside = places(tiles - 1 - back, column, elements, step, BLOCK)
        wide, g = load_gradient(dy, x, y, start, at, inside, m, scale, b, MASK)
        dx = tl.fma(g, scale, -tl.fma(wide - m, slope, offset))
        tl.store(grad + start + at, dx.to(grad.dtype.element_ty), mask=inside)
