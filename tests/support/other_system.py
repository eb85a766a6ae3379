"""Make this process look like one on a system that is not Linux, for the code of oekd_fast: ``imitate()``.

What it takes away or changes are the differences of Windows and macOS that concern this package: modules and functions
of POSIX and Linux, /proc and /sys, files that cannot be renamed or removed while they are open, and folders that cannot
be opened. Other packages have been imported before and keep what they use.
"""

from __future__ import annotations

import builtins
import errno
import os
import signal
import sys
import warnings
from pathlib import Path

from . import windows_locks

MODULES = ("fcntl", "grp", "mmap", "posix", "pty", "pwd", "resource", "syslog", "termios", "triton", "tty")
FUNCTIONS = (
    "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "O_SYNC", "chown", "fchmod", "fchown", "fork", "forkpty",
    "getegid", "geteuid", "getgid", "getloadavg", "getpgid", "getpgrp", "getuid", "killpg", "lchown", "mkfifo", "mknod",
    "nice", "posix_fadvise", "posix_fallocate", "pread", "preadv", "pwrite", "pwritev", "register_at_fork",
    "sched_getaffinity", "sched_setaffinity", "sendfile", "setsid", "statvfs", "sync", "sysconf", "uname", "wait4",
    "waitid", "waitpid",
)  # fmt: skip
SIGNALS = ("SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGUSR1", "SIGUSR2", "pthread_sigmask")
FOLDERS = ("/proc", "/sys", "/dev/shm")


def imitate() -> None:
    """Take the calls and modules away from this process, which cannot get them back."""
    warnings.filterwarnings("error", category=EncodingWarning, module=r"oekd_fast\..*")
    _hide_compiled_code()
    sys.modules["msvcrt"] = windows_locks
    for owner, names in ((os, FUNCTIONS), (signal, SIGNALS)):
        for name in names:
            if hasattr(owner, name):
                delattr(owner, name)
    _refuse_imports()
    _refuse_open_files()
    sys.addaudithook(_refuse_folders)


def _hide_compiled_code() -> None:
    is_file = Path.is_file
    Path.is_file = lambda path: path.suffix != ".so" and is_file(path)
    glob = Path.glob
    Path.glob = lambda path, pattern: () if pattern.endswith(".so") else glob(path, pattern)


def _called_by_package() -> bool:
    """Return whether code of oekd_fast called a function of this file, itself or through pathlib."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__") in ("pathlib", "io"):
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__", "").startswith("oekd_fast")


def _refuse_imports() -> None:
    original = builtins.__import__

    def guarded(name, globals=None, locals=None, fromlist=(), level=0):
        importer = (globals or {}).get("__name__", "")
        if name.partition(".")[0] in MODULES and importer.startswith("oekd_fast"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(name, globals, locals, fromlist, level)

    builtins.__import__ = guarded


def _refuse_open_files() -> None:
    """Have renames and removals of files that this process has open fail, and opening a folder, as on Windows."""
    descriptors, open_ = Path("/proc/self/fd"), os.open
    listdir, readlink, realpath = os.listdir, os.readlink, os.path.realpath

    def is_open(path) -> bool:
        target = realpath(path)
        for name in listdir(descriptors):
            try:
                if readlink(descriptors / name) == target:
                    return True
            except OSError:  # the descriptor of the listing itself
                continue
        return False

    def refusing(function, paths: int):
        def guarded(*arguments, **options):
            if _called_by_package():
                for path in arguments[:paths]:
                    with _quietly():
                        busy = os.path.lexists(path) and is_open(path)
                    if busy:
                        raise PermissionError(errno.EACCES, "the file is open", str(path))
            return function(*arguments, **options)

        return guarded

    for name, paths in (("replace", 2), ("rename", 2), ("unlink", 1), ("remove", 1), ("rmdir", 1)):
        setattr(os, name, refusing(getattr(os, name), paths))

    def guarded_open(path, flags, mode=0o777, **options):
        if os.path.isdir(path) and _called_by_package():
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open_(path, flags, mode, **options)

    os.open = guarded_open


class _quietly:
    """Context in which the audit hook allows this file to read /proc."""

    allowed = False

    def __enter__(self) -> None:
        _quietly.allowed = True

    def __exit__(self, *exc: object) -> None:
        _quietly.allowed = False


def _refuse_folders(event: str, arguments: tuple) -> None:
    if event == "open" and not _quietly.allowed and isinstance(arguments[0], str):
        if arguments[0].startswith(FOLDERS) and _called_by_package():
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", arguments[0])
