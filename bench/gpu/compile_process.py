"""Runs bench.gpu.compile in the background, while the tests run and nothing is timed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from .runner import ROOT, kill


class CompileProcess:
    """The process of bench.gpu.compile.

    Args:
        folder: An existing folder for the lines that the process writes and for its output.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "compiled"
        self.file.touch()
        with (folder / "output").open("wb") as out:
            command = [sys.executable, "-m", "bench.gpu.compile", str(self.file)]
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait_for_tests(self, seconds: float) -> dict:
        """Wait until the kernels of the tests are compiled, at most `seconds`; return `state()`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            if self.state()["tests_done"]:
                break
            time.sleep(0.2)
        return self.state()

    def wait(self, seconds: float) -> dict:
        """Wait until everything is compiled, at most `seconds`; end the process and return its last state."""
        try:
            self.process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            pass
        state = self.state()
        self.stop()
        return state

    def stop(self) -> None:
        if self.process.poll() is None:
            kill(self.process)

    def state(self) -> dict:
        """Return the number of kernels so far, whether those of the tests are done, and the errors by kernel."""
        lines = self._lines()
        state = {
            "kernels": sum("kernel" in line for line in lines),
            "tests_done": any("tests" in line for line in lines),
            "errors": {line["kernel"]: line["error"] for line in lines if "error" in line},
        }
        if self.process.poll():
            output = self.file.with_name("output").read_text(errors="replace")[-2000:]
            state["errors"]["process"] = f"ended with {self.process.returncode}\n{output}"
        return state

    def _lines(self) -> list[dict]:
        """Read the complete lines that the process has written."""
        text = self.file.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
