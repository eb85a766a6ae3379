"""Layout of the kernels of BatchNorm, residual and ReLU on a GPU, from the shape and dtype of the map alone.

A channels_last map is seen as rows = B * H * W rows of C channels, one after the other. A tile is `step` neighbouring
elements: as many whole rows as fit into `block` elements, and a multiple of 8 elements if possible, so that accesses
are of 16 bytes for any C. Position p of a tile always belongs to channel p % C. If a row is longer than `block`, a tile
is one row, and each of `columns` programs processes `block` channels of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import gcd, isqrt

MULTIPROCESSORS = 132  # those of an H100 or H200, for use without a GPU
BLOCK = 2048  # elements
WARPS = 8
VECTOR = 8  # elements, at least 16 bytes
# Programs that a multiprocessor holds at a time, according to bench/codegen: of those that compute sums for few and for
# many channels, and of those that write maps.
SUMMING, SUMMING_WIDE, WRITING = 3, 2, 4
WIDE = 512  # channels


@dataclass(frozen=True)
class NormReLUPlan:
    """Tiles and programs of the launches for one map.

    Attributes:
        block: elements that a program processes at a time, a power of two.
        rows: rows of a tile.
        vector: divides the number of elements of a tile; `VECTOR`, or 1.
        tiles: tiles of the map.
        columns: programs that share a row.
        sharing: programs that share the tiles in the launches that compute sums, for each column.
        writing: the same in the launches that write a map.
        warps: warps of a program.
    """

    block: int
    rows: int
    vector: int
    tiles: int
    columns: int
    sharing: int
    writing: int
    warps: int


@cache
def plan_norm_relu(
    rows: int, channels: int, itemsize: int, multiprocessors: int = MULTIPROCESSORS, block: int = BLOCK
) -> NormReLUPlan:
    """Plan the launches for a map of `rows` rows of `channels` elements of `itemsize` bytes."""
    aligned = VECTOR // gcd(VECTOR, channels)  # the fewest rows that are a multiple of VECTOR
    fitting = max(1, block // channels)
    if fitting >= aligned:
        fitting -= fitting % aligned
    tiles = ceil_div(rows, fitting)
    columns = ceil_div(channels, block)
    # The last program adds two numbers a channel of each program. With this many programs, those are as many bytes as
    # one program's share of the map.
    balanced = max(1, isqrt(rows * itemsize // 8))
    summing = SUMMING if channels <= WIDE else SUMMING_WIDE

    def sharing(most: int) -> int:
        return max(1, min(tiles, most // columns))

    return NormReLUPlan(
        block=block,
        rows=fitting,
        vector=1 if fitting * channels % VECTOR else VECTOR,
        tiles=tiles,
        columns=columns,
        sharing=sharing(min(balanced, summing * multiprocessors)),
        writing=sharing(WRITING * multiprocessors),
        warps=WARPS,
    )


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def power_of_2(n: int) -> int:
    """The smallest power of two that is at least `n`."""
    return 1 << (n - 1).bit_length()
