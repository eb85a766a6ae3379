"""Files of results: what was measured, on which machine, and the results."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from oekd_fast.common.files import write_atomically


def describe(entries: dict) -> str:
    """Return one line for a dict: the machine, the problem."""
    return ", ".join(f"{name} {value}" for name, value in entries.items())


def write(file: Path, content: dict) -> None:
    """Write `content` as JSON; a process that is killed leaves the previous file whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, (json.dumps(content, indent=1) + "\n").encode())


def report(what: str, machine: dict, results: Iterable[dict]) -> dict:
    """Return the content of a file that holds a list of results."""
    return {"what": what, "machine": machine, "results": list(results)}
