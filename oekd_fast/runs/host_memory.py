"""How the process's C library keeps memory that was freed."""

from __future__ import annotations

import ctypes

# Of glibc's malloc.h; the threshold for mappings of their own can be no larger.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_LARGEST_IN_HEAP = 32 * 2**20
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed, for all threads together, instead of giving it back to the system.

    A training step frees and asks for the same maps again and again; each time they come back from the system, every
    page of them is mapped and zeroed anew. It holds for the whole process, so programs call it, and no library.

    Returns:
        Whether it was done: False where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    settings = ((_MMAP_THRESHOLD, _LARGEST_IN_HEAP), (_TRIM_THRESHOLD, _NEVER), (_ARENA_MAX, 1))
    return all([mallopt(name, value) == 1 for name, value in settings])
