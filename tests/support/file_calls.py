"""Calls of the system with which a run writes: act before and after each, for campaigns in forked processes.

The changes stay in the process, which ends after its trial.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from oekd_fast.common.files import target_of_temporary
from oekd_fast.runs import phase

# The calls through which files and folders are changed.
CALLS = ("open", "write", "fsync", "close", "replace", "unlink", "mkdir", "ftruncate")


def count_calls(act: Callable[[int, str, str, tuple], None]) -> list[int]:
    """Have `act(number, name, moment, arguments)` called before and after each call of `CALLS` in this process.

    Returns:
        A list with the number of calls so far.
    """
    count = [0]

    def counted(name: str, function: Callable) -> Callable:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            count[0] += 1
            number = count[0]
            act(number, name, "before", arguments)
            result = function(*arguments, **options)
            act(number, name, "after", arguments)
            return result

        return wrapper

    for name in CALLS:
        setattr(os, name, counted(name, getattr(os, name)))
    return count


class FullDisk:
    """A disk that is full for some files: each write to them, or to their temporary files, fails half-way.

    Args:
        patch: pytest's monkeypatch; replaces `os.open` and `os.write`.
        ending: how the paths of the files end, such as "students/student_1.json".

    Attributes:
        failed: number of writes that failed.
    """

    def __init__(self, patch: Any, ending: str) -> None:
        self.failed = 0
        names: dict[int, str] = {}
        open_, write = os.open, os.write

        def opened(path: Any, *arguments: Any, **options: Any) -> int:
            descriptor = open_(path, *arguments, **options)
            target = Path(path)
            names[descriptor] = str(target.with_name(target_of_temporary(target.name) or target.name))
            return descriptor

        def written(descriptor: int, data: Any) -> int:
            if not names.get(descriptor, "").endswith(ending):
                return write(descriptor, data)
            self.failed += 1
            write(descriptor, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(os, "open", opened)
        patch.setattr(os, "write", written)


def report_saves(report: Callable[[str, int], None]) -> None:
    """Call `report` with the phase and the step of each checkpoint as soon as it is saved."""
    save = phase.save_checkpoint

    def reporting(folder: Path, state: dict[str, Any], step: int) -> Path:
        path = save(folder, state, step)
        report(folder.name, step)
        return path

    phase.save_checkpoint = reporting
