"""Functions that the kernels of BatchNorm, residual and ReLU share; `plan` describes the tiles.

A tile is [BLOCK] elements, of which the first STEP are in the map unless it is the last tile. Sums of the positions of
a tile are folded to [ROWS, WIDTH]: its rows and channels, padded to powers of two.
"""

from __future__ import annotations

import triton
import triton.language as tl

# The least positive output in bfloat16. Smaller outputs are 0, so that none becomes 0 by rounding: backward computes
# again which outputs are positive.
LEAST_BF16 = tl.constexpr(2.0**-126)


@triton.jit
def share_of_work(C: tl.constexpr, BLOCK: tl.constexpr):
    """This program's place among those that share the tiles, their number, and its column: the block of a row."""
    COLUMNS: tl.constexpr = (C + BLOCK - 1) // BLOCK
    return tl.program_id(0) // COLUMNS, tl.num_programs(0) // COLUMNS, tl.program_id(0) % COLUMNS


@triton.jit
def places(tile, column, elements, STEP: tl.constexpr, BLOCK: tl.constexpr):
    """Where a tile begins in the map (int64), positions relative to that [BLOCK], and which of them are in the map."""
    start = tl.cast(tile, tl.int64) * STEP
    at = column * BLOCK + tl.arange(0, BLOCK)
    inside = at < tl.cast(tl.minimum(elements - start, STEP), tl.int32)
    return start, at, inside


@triton.jit
def load_channels(values, column, C: tl.constexpr, BLOCK: tl.constexpr):
    """Load the number of each position's channel from `values` [C] as float32 [BLOCK]."""
    return tl.load(values + (column * BLOCK + tl.arange(0, BLOCK)) % C).to(tl.float32)


@triton.jit
def fold(values, C: tl.constexpr, TILE_ROWS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """[BLOCK] -> [ROWS, WIDTH]: the values of row r and channel c. They are undefined outside the tile."""
    BLOCK: tl.constexpr = values.shape[0]
    if ROWS * WIDTH == BLOCK and (WIDTH == C or ROWS == 1):
        return tl.reshape(values, [ROWS, WIDTH])
    i = tl.arange(0, ROWS * WIDTH)
    row, channel = i // WIDTH, i % WIDTH
    at = tl.where((row < TILE_ROWS) & (channel < C), row * C + channel, 0)
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
