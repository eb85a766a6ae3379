"""Calls of the system with which a run writes: act before and after each, for campaigns in forked processes.

The changes stay in the process, which ends after its trial.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def report_saves(report: Callable[[str, int], None]) -> None:
    """Call `report` with the phase and the step of each checkpoint as soon as it is saved."""
    save = phase.save_checkpoint

    def reporting(folder: Path, state: dict[str, Any], step: int) -> Path:
        path = save(folder, state, step)
        report(folder.name, step)
        return path

    phase.save_checkpoint = reporting
