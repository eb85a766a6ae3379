"""Read and write files safely: atomic replacement, appending, folders and files that may not be links.

Run folders may come from a stranger, disks fill up, and processes are killed. A writer here leaves the old or the new
content, never follows a symbolic link at the name that it writes to, and its errors name that file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# A temporary file is called "<name of the file>.<16 hexadecimal digits>.tmp".
_TEMPORARY = re.compile(r"(?P<name>.+)\.[0-9a-f]{16}\.tmp", re.DOTALL)
# Flags that some systems lack. Without O_NOFOLLOW, O_EXCL still refuses a link, and `_open` compares the file types.
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_COMMON = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | _NO_FOLLOW
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISSOCK, "a socket"),
)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # opening a FIFO would wait for its other end
# What fsync reports on file systems and systems that cannot synchronise a file or a folder.
_CANNOT_SYNC = frozenset(
    getattr(errno, name) for name in ("EINVAL", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EBADF") if hasattr(errno, name)
)


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to `path`, which holds either the old or the new content at any time, even after a crash.

    A symbolic link at `path` is replaced, and the file that it points to stays unchanged.

    Raises:
        OSError: writing failed; the error names `path`, which is unchanged, and no temporary file is left.
    """
    with _named(path):
        temporary = write_temporary(path, data)
        try:
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_temporary(path: Path, data: bytes | memoryview) -> Path:
    """Write `data` to a new file beside `path`, wait until it is on disk, and return its path.

    Raises:
        OSError: writing failed; the error names `path`, and no temporary file is left.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    with _named(path):
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _COMMON, 0o666)
        try:
            try:
                _write_all(descriptor, data)
                _sync(descriptor)
            finally:
                os.close(descriptor)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return temporary


def append_durably(path: Path, data: bytes) -> None:
    """Append `data` to the regular file `path`, which is created if it is missing, and wait until it is on disk.

    A process that is killed may leave a part of `data` at the end of the file.

    Raises:
        OSError: writing failed, or `path` is a link or no regular file; the error names `path`. No part of `data` is
            left.
    """
    with _named(path):
        descriptor = _open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            size = os.fstat(descriptor).st_size
            try:
                _write_all(descriptor, data)
                _sync(descriptor)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)


def open_regular(path: Path, limit: int | None = None) -> BinaryIO:
    """Open the regular file `path` for reading, without a buffer.

    Links are followed. Other kinds of files, such as FIFOs and devices, are refused without waiting for them. The kind
    and the size are those of the open file, which cannot be replaced between the check and the use.

    Args:
        limit: largest size to accept, in bytes; None accepts files of any size.

    Raises:
        OSError: `path` cannot be opened, is no regular file (EINVAL), or is larger than `limit` (EFBIG); the error
            names `path`.
    """
    with _named(path):
        descriptor = _open(path, os.O_RDONLY, follow=True)
        try:
            size = os.fstat(descriptor).st_size
            if limit is not None and size > limit:
                raise OSError(errno.EFBIG, f"expected at most {limit:,} bytes, got {size:,}")
            return os.fdopen(descriptor, "rb", buffering=0)
        except BaseException:
            os.close(descriptor)
            raise


def read_regular(path: Path, limit: int | None = None) -> bytes:
    """Return the content of the regular file `path`, opened as by `open_regular`.

    Raises:
        OSError: as `open_regular`, or reading failed; the error names `path`.
    """
    with _named(path), open_regular(path, limit) as file:
        return file.readall()


def make_folder_below(root: Path, *names: str) -> Path:
    """Create the folder `root/names[0]/names[1]/...` unless it exists, and return its path.

    Args:
        root: a folder that exists; it may be reached through links.
        names: names of the folders below it, which may not be links.

    Raises:
        OSError: a folder below `root` is a link or a file, or it cannot be created; the error names it.
    """
    folder = root
    for name in names:
        folder = folder / name
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
        mode = folder.lstat().st_mode
        if not stat.S_ISDIR(mode):
            kind = "a symbolic link, which may lead elsewhere" if stat.S_ISLNK(mode) else "a file"
            raise NotADirectoryError(errno.ENOTDIR, f"expected a folder, got {kind}", str(folder))
    return folder


def target_of_temporary(name: str) -> str | None:
    """Return the name of the file that the temporary file `name` was to become; None if it is not a temporary file."""
    match = _TEMPORARY.fullmatch(name)
    return match["name"] if match else None


def remove_temporary_files(folder: Path) -> None:
    """Remove what killed writers left in `folder`. No other process may be writing to it.

    Raises:
        OSError: a file cannot be removed.
    """
    for path in folder.iterdir():
        if target_of_temporary(path.name) is not None and not path.is_dir():
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Wait until renames in `folder` are on disk. Does nothing where folders cannot be synchronised.

    Raises:
        OSError: the disk reports an error.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # always on Windows; elsewhere for folders that can be written but not read
        return
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _open(path: Path, flags: int, *, follow: bool = False) -> int:
    """Open a regular file and return its descriptor."""
    descriptor = os.open(path, flags | _NO_WAIT | (_COMMON & ~_NO_FOLLOW if follow else _COMMON), 0o666)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            kind = next((kind for matches, kind in _KINDS if matches(mode)), "a special file")
            raise OSError(errno.EINVAL, f"expected a regular file, got {kind}")
        if not follow and stat.S_ISLNK(os.lstat(path).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Have errors of the system name `path`, because those of `os.write` and `os.fsync` name no file."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename == str(path):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
