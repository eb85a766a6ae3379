"""Open files that come from others: regular files of limited size only."""

from __future__ import annotations

import errno
import io
from pathlib import Path
from typing import BinaryIO

from oekd_fast.common import files
from oekd_fast.data.error import DataError
from oekd_fast.data.names import printable


def open_regular(path: Path, max_bytes: int | None = None) -> BinaryIO:
    """Open a regular file for reading, with a buffer; links to a regular file are followed.

    Args:
        path: the file.
        max_bytes: largest size in bytes; None for any.

    Raises:
        OSError: the file cannot be opened.
        DataError: it is not a regular file, or larger than `max_bytes`.
    """
    try:
        return io.BufferedReader(files.open_regular(path, max_bytes))
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EFBIG):
            raise DataError(f"{printable(path)}: {error.strerror}") from error
        raise
