"""Measure everything that needs a GPU in one run of at most ten minutes, into one report.

    python -m bench.gpu [--out FILE] [--quick]

Tests, device copy, losses, plans of the kernels, intermediate loss, training steps. Each section has its own processes
and its own time. A failure is recorded in the report, and the other sections still run. The report is written after
each result, so that it holds all results whenever the run ends.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch

from .. import result_file
from .compile_process import CompileProcess
from .environment import environment, slug
from .report import copy_bandwidth, derive, lines
from .runner import SECTIONS, run_cases
from .tests import run_all

RESULTS = Path(__file__).resolve().parents[1] / "results"
TOTAL_SECONDS = 560.0
# In the order of the sections; their sum is at most TOTAL_SECONDS. Time that a section leaves is not passed on.
BUDGETS = {"compile": 50.0, "tests": 150.0, "copy": 15.0, "loss": 100.0, "sweep": 40.0, "feature": 25.0, "step": 175.0}
CASE_SECONDS = {"copy": 15.0, "loss": 30.0, "sweep": 30.0, "feature": 30.0, "step": 100.0}
QUICK_SHARE = 0.4  # of the budgets


class Report:
    """The results so far, on disk after each change."""

    def __init__(self, path: Path, environment: dict) -> None:
        self.path = path
        self.data: dict = {"what": "bench.gpu", "environment": environment, "sections": {}}

    def put(self, section: str, content: dict) -> None:
        self.data["sections"].setdefault(section, {}).update(content)
        self.write()

    def write(self) -> None:
        result_file.write(self.path, self.data)


def guarded(report: Report, name: str, seconds: float, run: Callable[[float], dict | None]) -> None:
    """Run a section and record its content, or the error that ended it."""
    start = time.monotonic()
    content: dict = {}
    try:
        if seconds < 1.0:
            raise TimeoutError("no time left for this section")
        content = run(seconds) or {}
    except Exception:
        content = {"errors": {"section": traceback.format_exc()[-2000:]}}
    report.put(name, {**content, "seconds": round(time.monotonic() - start, 1)})


def run_section(report: Report, name: str, seconds: float, quick: bool) -> dict:
    """Measure the cases of a section; the report follows each result."""
    keys = import_module(SECTIONS[name]).keys(quick)

    def update(state: dict) -> None:
        if name == "loss":
            bandwidth, card = copy_bandwidth(report.data), report.data["environment"].get("gpu", "")
            for result in state["results"].values():
                result["derived"] = derive(result, bandwidth, card)
        report.put(name, state)

    return run_cases(name, keys, seconds, quick=quick, case_seconds=CASE_SECONDS[name], update=update)


def run_suite(report: Report, quick: bool, total: float = TOTAL_SECONDS) -> None:
    """Run all sections within `total` seconds."""
    deadline = time.monotonic() + total

    def seconds_of(name: str) -> float:
        return min(BUDGETS[name] * (QUICK_SHARE if quick else 1.0), deadline - time.monotonic())

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        compiling = CompileProcess(Path(folder))
        try:
            guarded(report, "compile", seconds_of("compile"), compiling.wait_for_tests)
            tests_end = time.monotonic() + seconds_of("tests")
            guarded(
                report,
                "tests",
                seconds_of("tests"),
                lambda s: run_all(s, lambda files: report.put("tests", {"files": files})),
            )
            # Kernels that are compiled in the time which the tests left need not be compiled in the sections' time.
            guarded(report, "compile", seconds_of("compile"), lambda _: compiling.wait(tests_end - time.monotonic()))
        finally:
            compiling.stop()
    for name in SECTIONS:
        guarded(report, name, seconds_of(name), lambda s, name=name: run_section(report, name, s, quick))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="report; bench/results/gpu_<card>.json if it is not given")
    parser.add_argument("--quick", action="store_true", help="measure fewer sizes in less time")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "bench.gpu: expected a CUDA device, torch finds none\n")
    where = environment()
    report = Report(arguments.out or RESULTS / f"gpu_{slug(where['gpu'])}.json", where)
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
