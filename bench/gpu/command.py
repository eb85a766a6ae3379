"""Everything that needs a GPU in one run of at most ten minutes: tests, bandwidth, losses, plans, training steps.

    python -m bench.gpu [--out FILE] [--quick]

Sections run in processes of their own and within their own time; what fails is written down and the rest goes on. The
file is written again after each result, so that what was measured is there whenever the run ends.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch

from oekd_fast.common.machine import machine
from oekd_fast.native import why_missing

from .report import copy_bandwidth, derive, lines
from .runner import ROOT, SECTIONS, kill, run_cases
from .tests import run_all

RESULTS = Path(__file__).resolve().parents[1] / "results"
TOTAL_SECONDS = 560.0  # 460 were enough without the training steps
# In this order; together TOTAL_SECONDS less what the beginning takes. Time left over is not passed on.
BUDGETS = {"compile": 50.0, "tests": 150.0, "copy": 15.0, "loss": 100.0, "sweep": 40.0, "feature": 25.0, "step": 175.0}
CASE_SECONDS = {"copy": 15.0, "loss": 30.0, "sweep": 30.0, "feature": 30.0, "step": 100.0}
QUERY = "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"


class Report:
    """The results as they grow, on disk after each change."""

    def __init__(self, path: Path, environment: dict) -> None:
        self.path = path
        self.data: dict = {"what": "bench.gpu", "environment": environment, "sections": {}}

    def put(self, section: str, content: dict) -> None:
        self.data["sections"].setdefault(section, {}).update(content)
        self.write()

    def write(self) -> None:
        """Never half a file: a kill may come at any time."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(self.path.name + ".new")
        beside.write_text(json.dumps(self.data, indent=1) + "\n")
        os.replace(beside, self.path)


def guarded(report: Report, name: str, seconds: float, run: Callable[[float], dict | None]) -> None:
    """A section: what goes wrong in it is written down."""
    start = time.monotonic()
    content: dict = {}
    try:
        if seconds < 1.0:
            raise TimeoutError("no time left for this section")
        content = run(seconds) or {}
    except Exception:
        content = {"errors": {"section": traceback.format_exc()[-2000:]}}
    report.put(name, {**content, "seconds": round(time.monotonic() - start, 1)})


def environment() -> dict:
    """Card, driver, clocks, versions, commit."""
    try:
        from triton import __version__ as triton
    except ImportError:
        triton = None
    native = why_missing() is None  # without the extension, students share one stream
    where = machine() | {"triton": triton, "cuda": torch.version.cuda, "native": native}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        where |= {
            "gpu": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "cache_bytes": getattr(properties, "L2_cache_size", None),
            "capability": f"{properties.major}.{properties.minor}",
        }
    return where | query_card()


def query_card() -> dict:
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        return {"nvidia_smi": f"{type(error).__name__}: {error}"[:200]}
    values = [value.strip() for value in done.stdout.splitlines()[0].split(",")]
    return {"nvidia_smi": dict(zip(QUERY.split(","), values, strict=False))}


def slug(card: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", card.lower()).strip("_") or "unknown"


class Compiling:
    """bench.gpu.compile, which goes on behind the tests, where nothing is timed."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "compiled"
        self.file.touch()
        with (folder / "output").open("wb") as out:
            command = [sys.executable, "-m", "bench.gpu.compile", str(self.file)]
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def _said(self) -> list[dict]:
        text = self.file.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def wait_for_tests(self, seconds: float) -> dict:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            if any("tests" in line for line in self._said()):
                break
            time.sleep(0.2)
        return self.state()

    def wait(self, seconds: float) -> dict:
        """Until all is done, at most so long: then what is left is compiled where it is needed."""
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
        said = self._said()
        state = {
            "kernels": sum("kernel" in line for line in said),
            "tests_done": any("tests" in line for line in said),
            "errors": {line["kernel"]: line["error"] for line in said if "error" in line},
        }
        if self.process.poll():
            output = self.file.with_name("output").read_text(errors="replace")[-2000:]
            state["errors"]["process"] = f"ended with {self.process.returncode}\n{output}"
        return state


def run_section(report: Report, name: str, seconds: float, quick: bool) -> dict:
    keys = import_module(SECTIONS[name]).keys(quick)

    def update(state: dict) -> None:
        if name == "loss":
            bandwidth, card = copy_bandwidth(report.data), report.data["environment"].get("gpu", "")
            for result in state["results"].values():
                result["derived"] = derive(result, bandwidth, card)
        report.put(name, state)

    return run_cases(name, keys, seconds, quick=quick, case_seconds=CASE_SECONDS[name], update=update)


def run_suite(report: Report, quick: bool, total: float = TOTAL_SECONDS) -> None:
    deadline = time.monotonic() + total

    def seconds_of(name: str) -> float:
        return min(BUDGETS[name] * (0.4 if quick else 1.0), deadline - time.monotonic())

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        compiling = Compiling(Path(folder))
        try:
            guarded(report, "compile", seconds_of("compile"), compiling.wait_for_tests)
            tests_end = time.monotonic() + seconds_of("tests")
            guarded(
                report,
                "tests",
                seconds_of("tests"),
                lambda s: run_all(s, lambda files: report.put("tests", {"files": files})),
            )
            # Where the tests were quick, their time goes to what the losses would else compile in theirs.
            guarded(report, "compile", seconds_of("compile"), lambda _: compiling.wait(tests_end - time.monotonic()))
        finally:
            compiling.stop()
    for name in SECTIONS:
        guarded(report, name, seconds_of(name), lambda s, name=name: run_section(report, name, s, quick))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="default: bench/results/gpu_suite_<card>.json")
    parser.add_argument("--quick", action="store_true", help="fewer sizes, shorter")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "bench.gpu: needs a CUDA device, torch sees none\n")
    where = environment()
    report = Report(arguments.out or RESULTS / f"gpu_suite_{slug(where['gpu'])}.json", where)
    report.write()
    start = time.monotonic()
    try:
        run_suite(report, arguments.quick)
    finally:
        report.data["seconds"] = round(time.monotonic() - start, 1)
        report.write()
        print("\n".join(lines(report.data)), flush=True)
        print(f"written to {report.path}, {report.data['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
