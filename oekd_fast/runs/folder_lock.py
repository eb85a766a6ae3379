"""Lock of a folder, so that one process at a time writes to it."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
import stat
import time
from pathlib import Path
from typing import NamedTuple

from oekd_fast.common.files import read_regular

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
try:
    import msvcrt
except ImportError:  # all others
    msvcrt = None

LOCK_FILE = "run.lock"
_FLAGS = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_HELD_BY_ANOTHER = frozenset((errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK))
# Windows locks bytes, which other processes cannot read then. This one is far behind the record in the file.
_LOCKED_BYTE = 1 << 30
_NO_LOCKS = frozenset(
    getattr(errno, name) for name in ("ENOSYS", "ENOTSUP", "EOPNOTSUPP", "EINVAL", "ENOLCK") if hasattr(errno, name)
)
_LARGEST_RECORD = 1024  # bytes
_SECONDS_TO_WRITE_A_RECORD = 2.0


class FolderInUseError(ValueError):
    """Another process is writing to the folder; the message names the process and its host."""


class _Record(NamedTuple):
    """Process that holds a lock, as the lock file names it: "<process id> <host> <start of the process>"."""

    pid: int
    host: str
    start: str

    @classmethod
    def of_this_process(cls) -> _Record:
        return cls(os.getpid(), _host(), _start_of(os.getpid()))

    @classmethod
    def read(cls, path: Path) -> _Record | None:
        """Read a lock file; None if it is missing or names no process."""
        try:
            text = read_regular(path, _LARGEST_RECORD).decode("ascii")
        except (OSError, UnicodeDecodeError):
            return None
        match = re.fullmatch(r"(\d{1,10}) ([\w.-]{1,255}) (\d{1,20}|-)\n", text)
        return cls(int(match[1]), match[2], match[3]) if match else None

    def encode(self) -> bytes:
        return f"{self.pid} {self.host} {self.start}\n".encode("ascii")

    def has_ended(self) -> bool:
        """Return whether the process ran on this host and has ended."""
        if self.host != _host() or os.name == "nt":  # there, os.kill would end the process
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # it belongs to another user
            pass
        return self.start != "-" and self.start != _start_of(self.pid)  # the number was given to a later process


def holder_of(folder: Path) -> str | None:
    """Return the process that writes to `folder`, as "process 12 on name"; None if none does. Nothing is locked."""
    holder = _Record.read(folder / LOCK_FILE)
    return None if holder is None or holder.has_ended() else f"process {holder.pid} on {holder.host}"


class FolderLock:
    """Context that holds the lock of a folder, which exists.

    The lock is `flock` on the file `run.lock`, or `msvcrt.locking` on Windows. The system releases it when the process
    ends, in whatever way. On file systems without such locks, the file itself is the lock. It names its process, and a
    file whose process has ended on this host is taken over; on Windows such a file has to be removed by hand.

    Raises:
        FolderInUseError: another process holds the lock.
        OSError: the file cannot be created.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / LOCK_FILE
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        return self._descriptor is not None

    def __enter__(self) -> FolderLock:
        while self._descriptor is None:
            self._descriptor = self._acquire()
        return self

    def __exit__(self, *exc: object) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            # The file is removed first: a process that opened it meanwhile finds that it holds a removed file.
            removed = self._remove()
            _unlock(descriptor)
            os.close(descriptor)
            if not removed:  # Windows does not remove an open file
                self._remove()

    def _remove(self) -> bool:
        try:
            self._path.unlink(missing_ok=True)
        except OSError:
            return False
        return True

    def _acquire(self) -> int | None:
        """Return the descriptor of the locked file; None to try again."""
        descriptor, created = self._open()
        if descriptor is None:
            return None
        held = False
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "expected a regular file", str(self._path))
            locked = _lock(descriptor)
            if self._is_current(descriptor) if locked else created:
                self._write_record(descriptor)
                held = True
        except BlockingIOError:
            raise self._in_use() from None
        finally:
            if not held:
                os.close(descriptor)
        if not locked and not created:
            self._take_over()
        return descriptor if held else None

    def _open(self) -> tuple[int | None, bool]:
        """Open the lock file, and return whether it is new; the descriptor is None if it was removed meanwhile."""
        try:
            return os.open(self._path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o666), True
        except FileExistsError:
            pass
        try:
            return os.open(self._path, _FLAGS), False
        except FileNotFoundError:
            return None, False

    def _is_current(self, descriptor: int) -> bool:
        """Return whether the file was not removed between opening and locking it."""
        if msvcrt is not None:  # Windows does not remove an open file
            return True
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self._path, follow_symlinks=False))
        except FileNotFoundError:
            return False

    def _write_record(self, descriptor: int) -> None:
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, _Record.of_this_process().encode())
        except OSError as error:
            self._path.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def _take_over(self) -> None:
        """Remove a lock file whose process has ended, where the file itself is the lock."""
        with contextlib.suppress(FileNotFoundError):  # its process has removed it
            before = _state_of(self._path)
            holder, end = _Record.read(self._path), time.monotonic() + _SECONDS_TO_WRITE_A_RECORD
            while holder is None and time.monotonic() < end:  # its process is about to write it
                time.sleep(0.05)
                before = _state_of(self._path)
                holder = _Record.read(self._path)
            if holder is not None and not holder.has_ended():
                raise self._in_use()
            # Another process may take over at the same time. It is noticed by what was moved, and gets its file back.
            moved = self._path.with_name(f"{LOCK_FILE}.{os.getpid()}")
            os.replace(self._path, moved)
            if _state_of(moved) == before and _Record.read(moved) == holder:
                moved.unlink()
            else:
                os.replace(moved, self._path)

    def _in_use(self) -> FolderInUseError:
        holder = _Record.read(self._path)
        who = f"process {holder.pid} on {holder.host}" if holder else "another process"
        return FolderInUseError(
            f"output_dir: {self._folder} is in use by {who}; wait until it has ended or choose another folder"
            f" ({self._path} is its lock)"
        )


def _lock(descriptor: int) -> bool:
    """Lock a file; return False if its file system or this system has no locks that end with their process.

    Raises:
        BlockingIOError: another process holds the lock.
    """
    try:
        if msvcrt is not None:
            _change_byte(descriptor, msvcrt.LK_NBLCK)
        elif fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            return False
    except OSError as error:
        if error.errno in _HELD_BY_ANOTHER:
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK)) from error
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


def _unlock(descriptor: int) -> None:
    """Unlock a file that is about to be closed, which is enough elsewhere; Windows may unlock it later."""
    if msvcrt is not None:
        with contextlib.suppress(OSError):  # it was not locked, on a file system without locks
            _change_byte(descriptor, msvcrt.LK_UNLCK)


def _change_byte(descriptor: int, mode: int) -> None:
    """Lock or unlock a byte of a file on Windows."""
    os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(descriptor, mode, 1)
    finally:
        os.lseek(descriptor, 0, os.SEEK_SET)


def _state_of(path: Path) -> tuple[int, int, int]:
    """Return what tells a file from a later one of the same name."""
    status = path.lstat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _host() -> str:
    return re.sub(r"[^\w.-]", "-", platform.node(), flags=re.ASCII) or "unknown"


def _start_of(pid: int) -> str:
    """Return the time when a process started, in clock ticks since the system started; "-" where it is unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return "-"
    return fields[19]  # field 22 of the file; the first two precede the last parenthesis
