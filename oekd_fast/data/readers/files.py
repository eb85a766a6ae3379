"""Open files that come from others: regular files of limited size only."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from oekd_fast.data.error import DataError
from oekd_fast.data.names import printable

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISSOCK, "a socket"),
)
# O_NONBLOCK: to open a FIFO without a writer would wait forever. O_BINARY exists on Windows only.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def open_regular(path: Path, max_bytes: int | None = None) -> BinaryIO:
    """Open a regular file for reading; links to a regular file are followed.

    The kind and size are taken from the open file, which cannot change between the check and the use.

    Args:
        path: the file.
        max_bytes: largest size in bytes; None for any.

    Raises:
        OSError: the file cannot be opened.
        DataError: it is not a regular file, or larger than `max_bytes`.
    """
    descriptor = os.open(path, _FLAGS)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            kind = next((kind for matches, kind in _KINDS if matches(status.st_mode)), "a special file")
            raise DataError(f"{printable(path)}: expected a regular file, got {kind}")
        if max_bytes is not None and status.st_size > max_bytes:
            raise DataError(f"{printable(path)}: expected at most {max_bytes:,} bytes, got {status.st_size:,}")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
