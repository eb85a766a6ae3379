"""Processes that run a training step when they are asked to, so that steps of different processes can take turns."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence


def serve(step: Callable[[], object], about: Mapping[str, object]) -> None:
    """Print `about` as JSON, then call `step` for each line of standard input and print a line when it is done."""
    print(json.dumps(about), flush=True)
    for _ in sys.stdin:
        step()
        print(flush=True)


class Worker:
    """A process whose command calls `serve`.

    Args:
        command: module and arguments, as after ``python -m``.
        environment: variables of the process.

    Attributes:
        about: what the process has told about itself.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", *command], env=dict(environment), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        self._about: dict | None = None

    @property
    def about(self) -> dict:
        if self._about is None:
            self._about = json.loads(self._process.stdout.readline())
        return self._about

    def begin(self) -> None:
        """Have the process run a step."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def end(self) -> None:
        """Wait for the step."""
        self._process.stdout.readline()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


class Workers:
    """Processes that run their steps at the same time."""

    def __init__(self, members: Sequence[Worker]) -> None:
        self._members = members
        self.about = [worker.about for worker in members]

    def step(self) -> None:
        """Run a step of each process and wait for all."""
        for worker in self._members:
            worker.begin()
        for worker in self._members:
            worker.end()

    def stop(self) -> None:
        for worker in self._members:
            worker.stop()
