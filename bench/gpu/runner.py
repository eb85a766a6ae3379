"""Cases of a section, one after the other, in a process that may die or hang without taking the rest with it.

    python -m bench.gpu.runner SECTION FILE --seconds N [--quick] KEY ...

A process writes a line of JSON when it begins a case and one for each result of it. When it dies, or is silent for too
long, the case it was at is marked and a new process goes on with those behind it.
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
POLL = 0.1  # s
TAIL = 2000  # characters of a dead process's output that are kept


def run_cases(
    section: str,
    keys: list[str],
    seconds: float,
    *,
    quick: bool = False,
    case_seconds: float = 60.0,
    update: Callable[[dict], None] = lambda state: None,
    module: str = "bench.gpu.runner",
) -> dict:
    """{"results": by key, "errors": by key, "not_run": keys}; `update` sees it whenever it grows."""
    state: dict = {"results": {}, "errors": {}, "not_run": list(keys)}
    deadline = time.monotonic() + seconds
    while state["not_run"] and time.monotonic() < deadline:
        before = len(state["not_run"])
        _one_process(section, state, deadline, quick, case_seconds, update, module)
        if len(state["not_run"]) == before:  # it did not even begin a case
            break
    update(state)
    return state


def _one_process(section, state, deadline, quick, case_seconds, update, module) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lines, output = Path(folder, "lines"), Path(folder, "output")
        lines.touch()
        left = deadline - time.monotonic()
        command = [sys.executable, "-m", module, section, str(lines), "--seconds", f"{left:.1f}"]
        command += ["--quick"] * quick + state["not_run"]
        with output.open("wb") as out:
            process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        current, at, spoke, why = None, 0, time.monotonic(), None
        while True:
            ended = process.poll() is not None
            complete = lines.read_text().splitlines(keepends=True)
            for line in (new for new in complete[at:] if new.endswith("\n")):
                at, spoke = at + 1, time.monotonic()
                current = _take(json.loads(line), state, current)
                update(state)
            if ended:
                why = None if process.returncode == 0 else f"process ended with {process.returncode}"
                break
            now = time.monotonic()
            if now > deadline or now - spoke > case_seconds:
                why = "out of the section's time" if now > deadline else f"silent for {case_seconds:.0f} s"
                kill(process)
                break
            time.sleep(POLL)
        if why:
            said = output.read_text(errors="replace")[-TAIL:]
            state["errors"].setdefault(current or "start", f"{why}\n{said}".strip())


def _take(line: dict, state: dict, current: str | None) -> str | None:
    """The case that a process is at after it wrote a line."""
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
    """With all it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def run_here(measure: Callable, keys: list[str], file: Path, seconds: float, quick: bool) -> int:
    """The process's side: 3 when the GPU can be used no more."""
    from .loss import is_fatal

    deadline = time.monotonic() + seconds
    with file.open("a") as lines:

        def say(**line) -> None:
            lines.write(json.dumps(line) + "\n")
            lines.flush()

        for key in keys:
            if time.monotonic() > deadline:
                break
            say(begin=key)
            try:
                measure(key, lambda result, key=key: say(key=key, result=result), deadline, quick)
                say(done=key)
            except Exception as error:
                say(key=key, error=traceback.format_exc()[-TAIL:])
                if is_fatal(error):
                    return 3
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("file", type=Path)
    parser.add_argument("keys", nargs="+")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    measure = import_module(SECTIONS[arguments.section]).measure
    sys.exit(run_here(measure, arguments.keys, arguments.file, arguments.seconds, arguments.quick))


if __name__ == "__main__":
    main()
