"""Which program of a launch, or of a part of one, finishes last."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def last_to_arrive(counter, programs):
    """Whether this program is the last of `programs`; then it sees all they stored, and the counter is 0 again."""
    tl.debug_barrier()
    last = tl.atomic_add(counter, 1, sem="acq_rel") == programs - 1
    tl.debug_barrier()
    if last:
        tl.store(counter, 0)
    return last
