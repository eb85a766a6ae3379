"""Commands that torchrun starts on several ranks of this machine."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

LIMIT = 240  # seconds


class Launched:
    """A command under torchrun, in a process group of its own.

    Attributes:
        output: standard output and error of all ranks and of the launcher, after `wait`.
    """

    def __init__(self, arguments: list[str], ranks: int = 2, restarts: int = 0) -> None:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        self._process = subprocess.Popen(
            [sys.executable, *launcher, "--max-restarts", str(restarts), "-m", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        self.output = ""

    def ranks(self) -> dict[int, int]:
        """Return the process ids of the running ranks, by rank."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rpartition(") ")[2].split()[1])
                if parent == self._process.pid:
                    environment = (folder / "environ").read_bytes().split(b"\0")
                    rank = next(int(v[5:]) for v in environment if v.startswith(b"RANK="))
                    found[rank] = int(folder.name)
            except (OSError, ValueError, StopIteration):  # the process has ended, or is not a rank
                continue
        return found

    def signal(self, number: int) -> None:
        """Send a signal to the launcher."""
        os.kill(self._process.pid, number)

    def wait(self) -> int:
        """Wait for the end and return the exit status; no process of the command is left."""
        try:
            self.output, _ = self._process.communicate(timeout=LIMIT)
            return self._process.returncode
        finally:
            self.kill()

    def kill(self) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def left(self) -> list[int]:
        """Return the processes of the command that still run."""
        alive = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                fields = (folder / "stat").read_text().rpartition(") ")[2].split()
            except OSError:
                continue
            if int(fields[3]) == self._process.pid and fields[0] != "Z":
                alive.append(int(folder.name))
        return alive


def wait_until(condition: Callable[[], bool], process: Launched) -> None:
    """Wait until `condition` holds; fail if the command ends or takes too long before."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        if process._process.poll() is not None:
            process.wait()
            raise AssertionError(f"the command ended early:\n{process.output}")
        if time.monotonic() > deadline:
            process.kill()
            raise TimeoutError(process._process.communicate()[0])
        time.sleep(0.02)
