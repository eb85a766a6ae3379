"""Memory for images: an array that does not fit is an error that names the way out, not a killed process."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from oekd_fast.data.error import DataError

_MEMINFO = Path("/proc/meminfo")
_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Return the bytes that this process can still allocate; None if the system does not say.

    This is the least of what the machine has left (with swap) and what the control groups of the process have left, as
    in a container or a batch job.
    """
    left = [amount for amount in (_machine(), *_control_groups()) if amount is not None]
    return max(0, min(left)) if left else None


def check_fits(what: str, count: int, shape: tuple[int, ...]) -> None:
    """Raise DataError if `count` images of `shape` (uint8) need more memory than there is.

    `what` names the images in the message, for example "images of the size of cat/1.png".
    """
    needed, available = count * math.prod(shape), available_memory()
    if available is not None and needed > available:
        raise _too_large(what, count, shape, f"at most {_gib(available)} of free memory")


def allocate(what: str, count: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return an uninitialised array for `count` images, uint8 [count, *shape].

    Raises:
        DataError: it does not fit in memory; see `check_fits`.
    """
    check_fits(what, count, shape)
    try:
        return np.empty((count, *shape), dtype=np.uint8)
    except (MemoryError, ValueError) as error:  # ValueError: more bytes than an address can count
        raise _too_large(what, count, shape, "an array that can be allocated") from error


def _too_large(what: str, count: int, shape: tuple[int, ...], limit: str) -> DataError:
    size = " x ".join(str(length) for length in shape)
    return DataError(
        f"{what}: expected {limit}, got {count:,} images of {size} bytes ({_gib(count * math.prod(shape))}); "
        f"set stream=True (--data-placement stream) to leave them on disk, or a smaller image_size"
    )


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


def _machine() -> int | None:
    """Return available memory and free swap; where Linux does not say so, all memory of the machine."""
    try:
        lines = (line.split() for line in _text(_MEMINFO).splitlines())
        amounts = {parts[0]: 1024 * int(parts[1]) for parts in lines if len(parts) > 1}
        return amounts["MemAvailable:"] + amounts.get("SwapFree:", 0)
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # no os.sysconf on Windows
        return None


def _control_groups() -> Iterator[int | None]:
    """Yield what each memory group of this process and the groups around it have left."""
    try:
        lines = _text(_OWN_GROUPS).splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            root, limit, usage = _GROUPS, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, limit, usage = _GROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        own = root / path.lstrip("/")
        for group in (own, *own.parents):
            if not group.is_relative_to(root):
                break
            yield _left(group, limit, usage)


def _left(group: Path, limit: str, usage: str) -> int | None:
    """Return the limit of a group less its usage; pages of files that can be dropped are not counted as usage."""
    try:
        most, used = int(_text(group / limit)), int(_text(group / usage))
        statistics = (line.split() for line in _text(group / "memory.stat").splitlines())
        amounts = {name: int(value) for name, value in statistics}
    except (OSError, ValueError):  # also "max": no limit
        return None
    # In version 1, names without "total_" leave out the groups inside, which count as usage.
    files = (amounts.get(f"total_{kind}", amounts.get(kind, 0)) for kind in ("inactive_file", "active_file"))
    return most - used + sum(files)


def _text(path: Path) -> str:
    return path.read_text(encoding="ascii", errors="replace")
