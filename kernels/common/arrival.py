"""Detection of the last program to finish, in a launch or in a part of one."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def last_to_arrive(counter, programs):
    """Whether this program is the last of `programs` to arrive.

    The last one sees everything that the others stored, and resets the counter to 0.
    """
    last = arrives_last(counter, programs)
    if last:
        tl.store(counter, 0)
    return last


@triton.jit
def arrives_last(counter, programs):
    """Whether this program is the last of `programs` to arrive, and sees everything that the others stored.

    The counter then holds `programs`.
    """
    tl.debug_barrier()
    last = tl.atomic_add(counter, 1, sem="acq_rel") == programs - 1
    tl.debug_barrier()
    return last
