"""Files that are never seen half written."""

from __future__ import annotations

import os
from pathlib import Path

TEMPORARY_SUFFIX = ".tmp"


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to `path` so that `path` always holds all of the old or all of the new content.

    Raises:
        OSError: writing failed; `path` is as before and no temporary file is left.
    """
    temporary = temporary_path(path)
    try:
        write_durably(temporary, data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def temporary_path(path: Path) -> Path:
    """Where the content of `path` is written before it is renamed."""
    return path.with_name(path.name + TEMPORARY_SUFFIX)


def write_durably(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to `path` and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
