"""Memory of the process: the C library's treatment of freed blocks."""

from __future__ import annotations

import ctypes

# Options of mallopt in glibc's malloc.h, and the largest value that M_MMAP_THRESHOLD can have.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_LARGEST_IN_HEAP = 32 * 2**20
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have glibc keep freed memory for all threads instead of returning it to the system.

    A training step frees maps and allocates maps of the same sizes again and again. If they come from the system each
    time, every page is mapped and zeroed again. The setting holds for the whole process, so that only programs should
    call this, not libraries.

    Returns:
        False if the C library is not glibc, in which case nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    settings = ((_MMAP_THRESHOLD, _LARGEST_IN_HEAP), (_TRIM_THRESHOLD, _NEVER), (_ARENA_MAX, 1))
    return all([mallopt(name, value) == 1 for name, value in settings])
