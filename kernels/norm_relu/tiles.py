"""Functions that the kernels of BatchNorm, residual and ReLU share; `plan` describes the tiles.

A tile is [BLOCK] elements, of which the first `step` are in the map unless it is the last tile. The number of channels
is no compile-time constant, so that one compiled kernel serves many maps. Sums of the positions of a tile are folded to
[ROWS, WIDTH]: its rows and channels, padded to powers of two.
"""

from __future__ import annotations

import triton
import triton.language as tl

# The least positive output in bfloat16. Smaller outputs are 0, so that none becomes 0 by rounding: backward computes
# again which outputs are positive.
LEAST_BF16 = tl.constexpr(2.0**-126)


@triton.jit
def share_of_work(channels, BLOCK: tl.constexpr):
    """This program's place among those that share the tiles, their number, and its column: the block of a row."""
    columns = tl.cdiv(channels, BLOCK)
    return tl.program_id(0) // columns, tl.num_programs(0) // columns, tl.program_id(0) % columns


@triton.jit
def places(tile, column, elements, step, BLOCK: tl.constexpr):
    """Start of a tile in the map (int64), positions [BLOCK] relative to it, and a mask of those inside the map."""
    start = tl.cast(tile, tl.int64) * step
    at = column * BLOCK + tl.arange(0, BLOCK)
    inside = at < tl.cast(tl.minimum(elements - start, step), tl.int32)
    return start, at, inside


@triton.jit
def load_channels(values, column, channels, BLOCK: tl.constexpr):
    """Load the number of each position's channel from `values` [channels] as float32 [BLOCK]."""
    at = column * BLOCK + tl.arange(0, BLOCK)
    own = tl.load(values + at, mask=at < channels, other=0.0).to(tl.float32)
    return tl.gather(own, tl.maximum(at % channels - column * BLOCK, 0), 0)


@triton.jit
def fold(values, channels, tile_rows, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """[BLOCK] -> [ROWS, WIDTH]: the values of row r and channel c. They are undefined outside the tile."""
    i = tl.arange(0, ROWS * WIDTH)
    row, channel = i // WIDTH, i % WIDTH
    at = tl.where((row < tile_rows) & (channel < channels), row * channels + channel, 0)
    return tl.reshape(tl.gather(values, at, 0), [ROWS, WIDTH])


@triton.jit
def normalised(x, mean, scale, bias):
    """(x - mean) * scale + bias, with the same bits in forward and backward."""
    return tl.fma(x - mean, scale, bias)


@triton.jit
def rectified(z, dtype: tl.constexpr):
    """The ReLU of an output in float32 that is stored in `dtype`; NaN stays."""
    if dtype == tl.bfloat16:
        return tl.where(z < LEAST_BF16, 0.0, z)
    return tl.where(z < 0.0, 0.0, z)


@triton.jit
def masked(dy, z, dtype: tl.constexpr):
    """`dy` where the output `z` is positive in `dtype` or NaN, and else 0."""
    if dtype == tl.bfloat16:
        return tl.where(z < LEAST_BF16, 0.0, dy)
    return tl.where(z <= 0.0, 0.0, dy)
