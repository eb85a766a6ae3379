"""Training statistics of a channels_last map, and its normalisation with residual and ReLU: a launch each."""

from __future__ import annotations

import triton
import triton.language as tl

from ..common.arrival import last_to_arrive
from .tiles import fold, load_channels, normalised, places, rectified, share_of_work


@triton.jit(do_not_specialize=["rows", "tiles", "channels", "vectors"])
def statistics(
    x,  # [rows, channels]
    weight,  # fp32 [channels]
    mean, variance, rstd, scale,  # fp32 [channels]; variance is unbiased, scale = weight rstd
    shares,  # fp32 [chunks, 2, channels]: mean minus the pivot, and sum of squared deviations, of a program's rows
    done,  # int32 [columns], 0 before and after
    rows, elements, tiles, channels, vectors, eps,  # elements = rows channels; a tile is vectors VECTOR elements
    VECTOR: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Compute mean, variance and 1 / sqrt(biased variance + eps) of each channel.

    Each position of a tile has a running mean and a sum of squared deviations (Welford's algorithm), which are combined
    by Chan's formula, in a fixed order. Values are taken relative to the first row, the pivot, so that a mean far above
    the standard deviation costs no digits.
    """
    step = vectors * VECTOR
    tile_rows = step // channels
    chunk, chunks, column = share_of_work(channels, BLOCK)
    pivot = load_channels(x, column, channels, BLOCK)
    m = tl.zeros([BLOCK], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    count = 0.0
    for tile in tl.range(chunk, tiles, chunks, loop_unroll_factor=2):
        start, at, inside = places(tile, column, elements, step, BLOCK)
        d = tl.load(x + start + at, mask=inside, other=0.0).to(tl.float32) - pivot
        count += 1.0
        apart = d - m
        m += tl.where(inside, apart * (1.0 / count), 0.0)
        squares += tl.where(inside, apart * (d - m), 0.0)

    # The last tile may have fewer rows.
    last = (tiles - 1 - chunk) // chunks * chunks + chunk
    row = tl.arange(0, ROWS)
    n = tl.where(last * tile_rows + row < rows, count, count - 1.0)
    n = tl.where(row < tile_rows, n, 0.0)[:, None]
    here = n > 0.0
    m = tl.where(here, fold(m, channels, tile_rows, ROWS, WIDTH), 0.0)
    squares = tl.where(here, fold(squares, channels, tile_rows, ROWS, WIDTH), 0.0)
    of_chunk = tl.sum(n * m, 0) / rows_of(chunk, chunks, rows, tiles, tile_rows)
    apart = m - of_chunk[None, :]
    of_squares = tl.sum(squares + n * apart * apart, 0)
    c = column * BLOCK + tl.arange(0, WIDTH)
    share = shares + tl.cast(chunk, tl.int64) * (2 * channels) + c
    tl.store(share, of_chunk, mask=c < channels)
    tl.store(share + channels, of_squares, mask=c < channels)

    if last_to_arrive(done + column, chunks):
        write_statistics(
            x, weight, mean, variance, rstd, scale, shares, chunks, column, rows, tiles, eps,
            channels, tile_rows, BLOCK, WIDTH,
        )  # fmt: skip


@triton.jit
def write_statistics(
    x, weight, mean, variance, rstd, scale, shares, chunks, column, rows, tiles, eps,
    channels, tile_rows, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Combine the shares of all programs, TOGETHER at a time."""
    TOGETHER: tl.constexpr = BLOCK // WIDTH
    c = column * BLOCK + tl.arange(0, WIDTH)
    inside = c < channels
    count = rows.to(tl.float32)
    sums = tl.zeros([TOGETHER, WIDTH], tl.float32)
    for first in range(0, chunks, TOGETHER):
        at, n = shares_of(shares, first, chunks, c, rows, tiles, channels, tile_rows, TOGETHER)
        # Other programs of this launch wrote these values, so they are not read from the L1 cache.
        sums += n * tl.load(at, mask=(n > 0.0) & inside[None, :], other=0.0, cache_modifier=".cg")
    offset = tl.sum(sums, 0) / count
    squares = tl.zeros([TOGETHER, WIDTH], tl.float32)
    for first in range(0, chunks, TOGETHER):
        at, n = shares_of(shares, first, chunks, c, rows, tiles, channels, tile_rows, TOGETHER)
        here = (n > 0.0) & inside[None, :]
        apart = tl.load(at, mask=here, other=0.0, cache_modifier=".cg") - offset[None, :]
        squares += tl.load(at + channels, mask=here, other=0.0, cache_modifier=".cg") + n * apart * apart
    total = tl.sum(squares, 0)
    pivot = tl.load(x + c, mask=inside, other=0.0).to(tl.float32)
    tl.store(mean + c, pivot + offset, mask=inside)
    tl.store(variance + c, total / (count - 1.0), mask=inside)
    r = tl.div_rn(1.0, tl.sqrt_rn(total / count + eps))
    tl.store(rstd + c, r, mask=inside)
    tl.store(scale + c, tl.load(weight + c, mask=inside, other=0.0) * r, mask=inside)


@triton.jit
def rows_of(chunk, chunks, rows, tiles, tile_rows):
    """Number of rows in the tiles chunk, chunk + chunks, ... as float32; 0 for the chunks that do not exist."""
    own = (tiles - 1 - chunk) // chunks + 1
    missing = tl.where((tiles - 1 - chunk) % chunks == 0, tiles * tile_rows - rows, 0)
    return tl.where(chunk < chunks, own * tile_rows - missing, 0).to(tl.float32)


@triton.jit
def shares_of(shares, first, chunks, c, rows, tiles, channels, tile_rows, TOGETHER: tl.constexpr):
    """Pointers to the shares of TOGETHER programs from `first`, and the numbers of their rows [TOGETHER, 1]."""
    chunk = first + tl.arange(0, TOGETHER)
    n = rows_of(chunk, chunks, rows, tiles, tile_rows)[:, None]
    return shares + chunk.to(tl.int64)[:, None] * (2 * channels) + c[None, :], n


@triton.jit(do_not_specialize=["tiles", "channels", "vectors"])
def normalise(
    x, residual, y,  # [rows, channels]; residual may be None
    mean, scale, bias,  # fp32 [channels]
    elements, tiles, channels, vectors,  # elements = rows channels; a tile is vectors VECTOR elements
    VECTOR: tl.constexpr, BLOCK: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """y = relu((x - mean) * scale + bias + residual); without RELU, y = (x - mean) * scale + bias."""
    step = vectors * VECTOR
    chunk, chunks, column = share_of_work(channels, BLOCK)
    m = load_channels(mean, column, channels, BLOCK)
    factor = load_channels(scale, column, channels, BLOCK)
    b = load_channels(bias, column, channels, BLOCK)
    # From the last tile to the first, because the tiles that the statistics read last are still in the L2 cache.
    for back in range(chunk, tiles, chunks):
        start, at, inside = places(tiles - 1 - back, column, elements, step, BLOCK)
        z = normalised(tl.load(x + start + at, mask=inside, other=0.0).to(tl.float32), m, factor, b)
        if residual is not None:
            z += tl.load(residual + start + at, mask=inside, other=0.0).to(tl.float32)
        if RELU:
            z = rectified(z, y.dtype.element_ty)
        tl.store(y + start + at, z.to(y.dtype.element_ty), mask=inside)
