"""Errors of pyarrow as one-line data errors that name the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from oekd_fast.data.dataset import DataError
from oekd_fast.data.names import printable
from oekd_fast.data.readers.files import open_regular
from oekd_fast.data.readers.reading import require

REASON_LENGTH = 200
LFS_POINTER = b"version https://git-lfs"


@contextmanager
def arrow_errors(path: Path) -> Iterator[None]:
    """Raise what pyarrow raises for a damaged file as a DataError of one line that names the file."""
    arrow = require("pyarrow")
    try:
        yield
    except DataError:
        raise
    except (arrow.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
        raise DataError(f"cannot read {printable(path)}: {_reason(path, error)}") from error


def check_regular(path: Path) -> None:
    """Raise DataError unless `path` is a regular file, so that opening it by name does not wait or reach a device."""
    with arrow_errors(path):
        open_regular(path).close()


def _reason(path: Path, error: BaseException) -> str:
    try:
        with open_regular(path) as file:
            start = file.read(len(LFS_POINTER))
    except (OSError, DataError):
        start = b""
    if start == LFS_POINTER:
        return "the file is a Git LFS pointer without the data; run 'git lfs pull' in the folder"
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {printable(lines[0][:REASON_LENGTH])}"
