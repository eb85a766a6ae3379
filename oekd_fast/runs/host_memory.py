"""Memory of the process: its peak, and the C library's treatment of freed blocks."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None

_STATUS = Path("/proc/self/status")

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


def peak_memory() -> int | None:
    """Return the largest resident memory that this process has had, in bytes; None if the system does not say.

    On Linux, a process that was started by a larger one does not count the memory of that one.
    """
    try:
        lines = (line.split() for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines())
        return next(1024 * int(parts[1]) for parts in lines if parts and parts[0] == "VmHWM:")
    except (OSError, StopIteration, ValueError):
        pass
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
