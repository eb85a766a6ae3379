"""Measures the cases of one part of bench.gpu in this process.

    python -m bench.gpu.worker FOLDER PART --seconds N [--skip KEY ...] [--dry-run]

Results are appended to FOLDER/results.jsonl; see `bench.gpu.record`.
"""

from __future__ import annotations

import argparse
import ctypes
import signal
import sys
import textwrap
import time
import traceback
from collections.abc import Collection
from importlib import import_module
from pathlib import Path

from .parts import Part, named
from .record import Record
from .runner import LOST, TAIL

WIDTH = 80
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl


def run(part: Part, folder: Path, seconds: float, skip: Collection[str], dry_run: bool) -> int:
    """Measure the cases of a part other than those of `skip`; return the exit status."""
    from .context import Context
    from .device import Cuda
    from .rehearsal import Rehearsal

    deadline = time.monotonic() + seconds
    record = Record(folder)
    record.read()
    device = Rehearsal() if dry_run else Cuda()
    cases = {}
    for name in part.modules:
        module = import_module(f"bench.gpu.{name}")
        cases |= dict.fromkeys(module.keys(part.argument, device.tiny), module)
    record.append(part=part.name, keys=list(cases))
    for key, module in cases.items():
        if key in skip:
            continue
        if time.monotonic() > deadline:
            break
        record.append(part=part.name, begin=key)
        try:
            for result in module.measure(key, Context(device, deadline, record.results())):
                lines = [row for line in module.lines(key, result) for row in wrapped(line)]
                record.append(part=part.name, key=key, result=result, lines=lines)
        except Exception as error:
            what = f"{type(error).__name__}: {error}".splitlines()[0]
            record.append(part=part.name, key=key, error=f"{what}\n{traceback.format_exc()[-TAIL:]}")
            if device.lost(error):
                return LOST
        else:
            record.append(part=part.name, done=key)
        record.read()
        device.free()
    return 0


def wrapped(line: str) -> list[str]:
    """Break a line of a table into rows of at most 80 columns."""
    indent = " " * (2 + len(line) - len(line.lstrip()))
    return textwrap.wrap(
        line.strip(), WIDTH, initial_indent=indent, subsequent_indent=indent + "    ", drop_whitespace=False
    ) or [""]


def die_with_parent() -> None:
    """Have Linux kill this process when the command is killed, so that it does not keep the GPU busy."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu.worker", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder of the results")
    parser.add_argument("part", type=named, metavar="PART", help="name of the part; see bench/gpu/parts.py")
    parser.add_argument("--seconds", type=float, required=True, help="no case starts after so many seconds")
    parser.add_argument("--skip", action="append", default=[], metavar="KEY", help="leave out this case; repeatable")
    parser.add_argument("--dry-run", action="store_true", help="run on the CPU with stand-ins for a GPU")
    given = parser.parse_args()
    die_with_parent()
    sys.exit(run(given.part, given.folder, given.seconds, given.skip, given.dry_run))


if __name__ == "__main__":
    main()
