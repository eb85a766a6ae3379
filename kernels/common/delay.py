"""Delays for stress tests, so that programs of a launch reach each other's results in other orders."""

from __future__ import annotations

import triton
import triton.language as tl

DELAYS = tl.constexpr(256)


@triton.jit
def delay(delays, key):
    """Wait for delays[key % DELAYS] loads from global memory, which take turns.

    `delays` are int32 [DELAYS + 1], the last 1. It is read in each turn, so that the compiler keeps the loop.
    """
    rest = key - key // DELAYS * DELAYS  # key % DELAYS, also where Triton's interpreter has a Python integer
    left = tl.load(delays + rest)
    while left > 0:
        left -= tl.load(delays + DELAYS, volatile=True)
