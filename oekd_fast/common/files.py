"""Write files atomically: a reader sees the old or the new content, never a part."""

from __future__ import annotations

import os
from pathlib import Path

TEMPORARY_SUFFIX = ".tmp"


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to `path`, which holds either the old or the new content at any time, even after a crash.

    Raises:
        OSError: writing failed; `path` is unchanged and no temporary file is left.
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
    """Return the path of the temporary file that is renamed to `path`."""
    return path.with_name(path.name + TEMPORARY_SUFFIX)


def write_durably(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to `path` and wait until it is on disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until renames in `folder` are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
