"""Runs a part of bench.gpu in processes of their own, which may crash or hang without ending the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .parts import Part
from .record import Record

ROOT = Path(__file__).resolve().parents[2]
POLL = 0.1  # seconds
SILENCE = 0.6  # of the limit of a part: a process that writes no line for so long is killed
LEAST_SILENCE = 40.0  # seconds; the first import of torch on a machine takes long
TAIL = 2000  # characters of a failed process's output in its error


class Process(Protocol):
    """A worker that was started, as `subprocess.Popen`."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None: ...

    def wait(self) -> int: ...


class Console:
    """Prints lines and appends them to log.txt, which workers write their output to."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "log.txt"
        self.file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)

    def say(self, line: str = "") -> None:
        print(line, flush=True)
        os.write(self.file, (line + "\n").encode())
        os.fsync(self.file)

    def size(self) -> int:
        return os.fstat(self.file).st_size

    def tail(self, start: int) -> str:
        """Return the end of what was written from position `start` on."""
        return os.pread(self.file, self.size() - start, start).decode(errors="replace")[-TAIL:].strip()


Start = Callable[[Part, float, list[str], int], Process]


def start_worker(folder: Path, dry_run: bool) -> Start:
    """Return a function that starts a worker, given the part, its seconds, its cases to leave out, and its output."""
    environment = os.environ | ({"TRITON_INTERPRET": "1"} if dry_run else {})

    def start(part: Part, seconds: float, skip: list[str], output: int) -> Process:
        command = [sys.executable, "-m", "bench.gpu.worker", str(folder), part.name, "--seconds", f"{seconds:.1f}"]
        command += ["--dry-run"] * dry_run + [argument for key in skip for argument in ("--skip", key)]
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )

    return start


@dataclass
class Runner:
    """Runs parts one after the other.

    Attributes:
        clock: Returns the time in seconds.
    """

    record: Record
    console: Console
    start: Start
    clock: Callable[[], float] = time.monotonic

    def run(self, part: Part, limit: float) -> None:
        """Measure the cases of a part that have not completed, those that failed before at the end.

        A process that crashes or writes nothing for too long fails its current case alone: another process continues
        with the next one.
        """
        begun = self.clock()
        deadline = begun + limit
        state = self.record.part(part.name)
        failed_before = list(state.errors)
        state.errors.clear()
        skip = [*state.done, *(key for key in failed_before if key != "start")]
        why = self._processes(part, deadline, skip, limit)
        if why is None and len(skip) > len(state.done):  # those that failed in an earlier run
            why = self._processes(part, deadline, list(state.done), limit)
        ended = "out of time" if why == "time" else "done" if state.complete else "failed"
        self.record.append(part=part.name, ended=ended, seconds=round(self.clock() - begun, 1))
        self.record.read()

    def _processes(self, part: Part, deadline: float, skip: list[str], limit: float) -> str | None:
        """Start processes until no case is left; return "time" if it ran out, "stuck" if none starts a case."""
        state = self.record.part(part.name)
        while True:
            left = deadline - self.clock()
            if left <= 0:
                return "time"
            known = len(state.done) + len(state.errors)
            leave_out = list(dict.fromkeys([*skip, *state.done, *state.errors]))
            self._one_process(part, deadline, [key for key in leave_out if key != "start"], limit)
            if not [key for key in state.pending() if key not in skip] and "start" not in state.errors:
                return None
            if len(state.done) + len(state.errors) == known or "start" in state.errors:
                return "time" if self.clock() >= deadline else "stuck"

    def _one_process(self, part: Part, deadline: float, skip: list[str], limit: float) -> None:
        state, log = self.record.part(part.name), self.console.size()
        silence = max(SILENCE * limit, LEAST_SILENCE)
        process = self.start(part, deadline - self.clock(), skip, self.console.file)
        heard = self.clock()
        try:
            while True:
                ended = process.poll() is not None
                for line in self.record.read():
                    heard = self.clock()
                    for row in line.get("lines", ()):
                        self.console.say(row)
                if ended:
                    why = None if process.returncode == 0 else f"its process ended with {process.returncode}"
                    break
                now = self.clock()
                if now > deadline or now - heard > silence:
                    why = "no time left" if now > deadline else f"no result for {silence:.0f} s"
                    kill(process)
                    break
                time.sleep(POLL)
        finally:
            if process.poll() is None:
                kill(process)
        self.record.close_last_line()
        self.record.read()
        if why and (state.current is not None or not state.complete and process.returncode != LOST):
            key, tail = state.current or "start", self.console.tail(log)
            what = ": ".join([why, *tail.splitlines()[-1:]])
            self.record.append(part=part.name, key=key, error=f"{what}\n{tail}")
            self.record.read()


LOST = 3  # exit status of a worker whose GPU became unusable, after it has written the error


def kill(process: Process) -> None:
    """Kill a process that leads a session, with all its children."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
