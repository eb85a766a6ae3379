"""Measure the cases of a section in a process of their own, which may crash or hang without ending the run.

    python -m bench.gpu.runner SECTION FILE --seconds N [--quick] KEY ...

The process writes a line of JSON when it begins a case and a line for each result. If it crashes or writes nothing for
too long, its current case is recorded as failed, and a new process continues with the next case.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = {name: f"bench.gpu.{name}" for name in ("copy", "loss", "sweep", "feature", "step")}
POLL = 0.1  # seconds
TAIL = 2000  # characters of a failed process's output in the report


def run_cases(
    section: str,
    keys: list[str],
    seconds: float,
    *,
    quick: bool = False,
    case_seconds: float = 60.0,
    update: Callable[[dict], None] = lambda state: None,
    module: str = "bench.gpu.runner",
    clock: Callable[[], float] = time.monotonic,
) -> dict:
    """Measure the cases of a section in order.

    Args:
        section: A key of `SECTIONS`.
        keys: Names of the cases.
        seconds: Time of the section.
        case_seconds: A process which writes nothing for so long is killed.
        update: Called with the state after each line of the process.
        module: Command that measures the cases.
        clock: Returns the time in seconds.

    Returns:
        The state: "results" and "errors" by key, and the keys "not_run".
    """
    state: dict = {"results": {}, "errors": {}, "not_run": list(keys)}
    deadline = clock() + seconds
    while state["not_run"] and clock() < deadline:
        before = len(state["not_run"])
        _one_process(section, state, deadline, quick, case_seconds, update, module, clock)
        if len(state["not_run"]) == before:  # the process did not start a case: another one would not either
            break
    update(state)
    return state


def _one_process(section, state, deadline, quick, case_seconds, update, module, clock) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lines, output = Path(folder, "lines"), Path(folder, "output")
        lines.touch()
        left = deadline - clock()
        command = [sys.executable, "-m", module, section, str(lines), "--seconds", f"{left:.1f}"]
        command += ["--quick"] * quick + state["not_run"]
        with output.open("wb") as out:
            process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        current, read, last_line, why = None, 0, clock(), None
        while True:
            ended = process.poll() is not None
            complete = lines.read_text().splitlines(keepends=True)
            for line in (new for new in complete[read:] if new.endswith("\n")):
                read, last_line = read + 1, clock()
                current = _take(json.loads(line), state, current)
                update(state)
            if ended:
                why = None if process.returncode == 0 else f"process ended with {process.returncode}"
                break
            now = clock()
            if now > deadline or now - last_line > case_seconds:
                why = "the time of the section is over" if now > deadline else f"no line for {case_seconds:.0f} s"
                kill(process)
                break
            time.sleep(POLL)
        if why:
            tail = output.read_text(errors="replace")[-TAIL:]
            state["errors"].setdefault(current or "start", f"{why}\n{tail}".strip())


def _take(line: dict, state: dict, current: str | None) -> str | None:
    """Enter a line of the process into the state; return its case after that line."""
    if "begin" in line:
        state["not_run"].remove(line["begin"])
        return line["begin"]
    if "result" in line:
        state["results"][line["key"]] = line["result"]
        return current
    if "error" in line:
        state["errors"][line["key"]] = line["error"]
    return None


def kill(process: subprocess.Popen) -> None:
    """Kill a process that leads a session, with all its children."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def run_here(measure: Callable, keys: list[str], file: Path, seconds: float, quick: bool) -> int:
    """Measure cases in this process; return the exit status, 3 if the GPU became unusable."""
    from .loss import is_fatal

    deadline = time.monotonic() + seconds
    with file.open("a") as lines:

        def write(**line) -> None:
            lines.write(json.dumps(line) + "\n")
            lines.flush()

        for key in keys:
            if time.monotonic() > deadline:
                break
            write(begin=key)
            try:
                measure(key, lambda result, key=key: write(key=key, result=result), deadline, quick)
                write(done=key)
            except Exception as error:
                write(key=key, error=traceback.format_exc()[-TAIL:])
                if is_fatal(error):
                    return 3
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("file", type=Path, help="lines of JSON are appended to this file")
    parser.add_argument("keys", nargs="+", metavar="KEY", help="name of a case")
    parser.add_argument("--seconds", type=float, required=True, help="no case starts after so many seconds")
    parser.add_argument("--quick", action="store_true", help="measure for a shorter time")
    arguments = parser.parse_args()
    measure = import_module(SECTIONS[arguments.section]).measure
    sys.exit(run_here(measure, arguments.keys, arguments.file, arguments.seconds, arguments.quick))


if __name__ == "__main__":
    main()
