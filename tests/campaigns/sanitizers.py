"""Run the compiled code under AddressSanitizer, UBSan and ThreadSanitizer, and collect their reports.

    python -m tests.campaigns.sanitizers [--calls 5000] [--seed 0] [--folder FOLDER] [--output FILE]

1. The executor's thread pool runs random calls under ThreadSanitizer (host_pool_stress.cpp). The rest of the executor
   cannot: it runs inside Python and PyTorch, whose locks ThreadSanitizer does not see unless they are compiled with it.
2. Kernels and executor are built with the other two in a copy of the checkout. The tests of losses, layers and
   executors run with them where they call them, and in a second process random calls of tests/campaigns/fuzz_loss.py.
3. An out-of-bounds read, an overflow and a data race are planted and must be reported.

Wrong results of random calls are counted but are no fault here. Needs GCC with its sanitizers. The build takes
minutes; with ``--folder``, the next run compiles only what changed.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oekd_fast.common.machine import machine

from ..support.campaign_command import run_command

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULT = HERE / "results" / "sanitizers.json"
FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1")
THREAD_FLAGS = ("-fsanitize=thread", "-fno-omit-frame-pointer", "-g", "-O1", "-std=c++20", "-pthread")
OPTIONS = {
    # Python itself leaks, and tests ask for more memory than there is.
    "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    "TSAN_OPTIONS": "",
}
# The sanitizers also write warnings, for instance of memory that they could not allocate.
REPORT = re.compile("ERROR: AddressSanitizer|runtime error: |WARNING: ThreadSanitizer")
TESTS = ("tests/losses", "tests/layers", "tests/parallel")
# The tests that call compiled code, without those of torch.compile, which build extensions of their own.
CHOSEN = "(native or schemas or op_memory or layers or parallel) and not compile"
ROUNDS = 300  # of the thread pool, with new executors in each
# Stands in for torch's header in the program for ThreadSanitizer, which defines the functions.
PARALLEL_H = "#pragma once\nnamespace at {\nint get_num_threads();\nvoid set_num_threads(int threads);\n}\n"


@dataclass(frozen=True)
class Fault:
    """A fault that is planted in a kernel: code to replace, a call that runs it, and what the report says."""

    file: str
    old: str
    new: str
    call: str
    report: str


NORM = "from oekd_fast.layers import norm_relu; import torch; x, w = torch.ones(2, 5, 3, 3), torch.ones(5); "
PLANTED = {
    "out-of-bounds read": Fault(
        "csrc/cpu/norm_relu/norm_relu_kernel.cpp",
        "W z = Normalise<W>(f, p)(load_map<T, W>(f.x, i));",
        "W z = Normalise<W>(f, p)(load_map<T, W>(f.x, i + 1));",
        NORM + "torch.ops.oekd_fast.norm_relu(x, w, w, None, 1e-5)",
        "AddressSanitizer: heap-buffer-overflow",
    ),
    "signed overflow": Fault(
        "csrc/cpu/norm_relu/norm_relu_kernel.cpp",
        "void gradient(const NormBackward& b, int64_t begin, int64_t end) {",
        "void gradient(const NormBackward& b, int64_t begin, int64_t end) {\n  volatile int64_t most = INT64_MAX;\n"
        "  most = most + b.tile;",
        NORM + "torch.ops.oekd_fast.norm_relu_backward(x, x, None, w, w, w, w, False)",
        "runtime error: signed integer overflow",
    ),
}


def compiler() -> str:
    """Return the C++ compiler that setup.py uses."""
    return os.environ.get("CXX", "c++")


def library(name: str) -> str:
    """Return the path of a library of the compiler.

    Raises:
        FileNotFoundError: the compiler has no such library.
    """
    found = subprocess.run([compiler(), f"-print-file-name={name}"], check=True, capture_output=True, text=True)
    path = Path(found.stdout.strip())
    if not path.is_absolute():
        raise FileNotFoundError(f"{name}: expected a library of {compiler()}, got none; install GCC's sanitizers")
    return str(path.resolve())


class Runs:
    """Runs commands below a folder, and keeps what the sanitizers report."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reports: list[str] = []

    def run(self, command: Sequence[str], *, where: Path, **environment: str) -> subprocess.CompletedProcess:
        """Run a command, and take the reports of all its processes."""
        logs = Path(tempfile.mkdtemp(prefix="reports-", dir=self.folder))
        options = {name: ":".join(filter(None, (text, f"log_path={logs}/report"))) for name, text in OPTIONS.items()}
        done = subprocess.run(command, cwd=where, env={**os.environ, **options, **environment}, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        texts = [path.read_text(errors="replace") for path in sorted(logs.iterdir())]
        self.reports += filter(REPORT.search, texts)
        if found := REPORT.search(done.stdout):  # UBSan writes there, whatever log_path is
            self.reports.append(done.stdout[found.start() :][:5000])
        shutil.rmtree(logs)
        return done

    def take(self) -> list[str]:
        """Return the reports since the last call."""
        reports, self.reports = self.reports, []
        return reports


class ThreadPool:
    """The stress of the executor's thread pool, a program of its own without Python and PyTorch."""

    def __init__(self, runs: Runs) -> None:
        self._runs, self._program = runs, runs.folder / "host_pool_stress"
        stub = runs.folder / "stub" / "ATen"
        stub.mkdir(parents=True, exist_ok=True)
        (stub / "Parallel.h").write_text(PARALLEL_H)
        sources = [str(ROOT / "csrc" / "executor" / "host_pool.cpp"), str(HERE / "host_pool_stress.cpp")]
        command = [compiler(), *THREAD_FLAGS, f"-I{stub.parent}", f"-I{ROOT / 'csrc'}", *sources, "-ldl"]
        subprocess.run([*command, "-o", str(self._program)], check=True)
        # ThreadSanitizer of some versions of GCC does not start where addresses are random.
        fixed = ["setarch", "-R"]
        works = shutil.which("setarch") and subprocess.run([*fixed, "true"], capture_output=True).returncode == 0
        self._start = fixed if works else []

    def run(self, rounds: int, seed: int, *, race: bool = False) -> dict[str, Any]:
        """Run random calls. Returns their counts, the exit status and the reports.

        Args:
            race: plant a data race, which must be reported.
        """
        arguments = [str(rounds), str(seed), *(["race"] if race else [])]
        done = self._runs.run([*self._start, str(self._program), *arguments], where=self._runs.folder)
        counts = json.loads(done.stdout) if done.returncode == 0 else {"output": done.stdout[-2000:]}
        return {"flags": list(THREAD_FLAGS), "status": done.returncode, **counts, "reports": self._runs.take()}


class Checkout:
    """A copy of the checkout whose compiled code is built with the sanitizers."""

    def __init__(self, runs: Runs) -> None:
        self.runs, self.folder, self._compiler = runs, runs.folder / "checkout", runs.folder / "c++"
        self._compiler.write_text(f'#!/bin/sh\nexec {shlex.quote(compiler())} "$@" {shlex.join(FLAGS)}\n')
        self._compiler.chmod(0o755)
        self._preload = f"{library('libasan.so')} {library('libstdc++.so')}"
        self.restore()

    def restore(self) -> None:
        """Copy the files of the checkout that differ, so that a build compiles only what changed."""
        listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        found = subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split("\0")
        names = {name for name in found if (ROOT / name).is_file()}
        for name in names:
            source, copy = ROOT / name, self.folder / name
            if not (copy.is_file() and copy.read_bytes() == source.read_bytes()):
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, copy)
        for old in self.folder.rglob("*.py"):
            if old.relative_to(self.folder).as_posix() not in names:
                old.unlink()

    def build(self) -> None:
        path = str(self._compiler)
        environment = {**os.environ, "CC": path, "CXX": path}
        subprocess.run(
            [sys.executable, "setup.py", "build_ext", "--inplace"], cwd=self.folder, env=environment, check=True
        )

    def python(self, *arguments: str) -> subprocess.CompletedProcess:
        """Run Python with the copy's packages and the built libraries."""
        return self.runs.run([sys.executable, *arguments], where=self.folder, LD_PRELOAD=self._preload)

    def run_tests(self, *tests: str) -> dict[str, Any]:
        """Run the tests that call compiled code, without those that need a GPU or interpret Triton kernels."""
        log = self.runs.folder / "tests.xml"
        log.unlink(missing_ok=True)
        start = time.perf_counter()
        only = ["-m", "not gpu and not interpreter", "-k", CHOSEN, "-p", "no:cacheprovider", "--capture=sys", "-q"]
        done = self.python("-m", "pytest", *only, f"--junitxml={log}", *tests)
        result = {"tests": None, "skipped": None, "failed": [f"pytest: status {done.returncode}"]}
        if log.exists():
            cases = list(ElementTree.parse(log).getroot().iter("testcase"))
            failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
            result = {
                "tests": len(cases),
                "skipped": sum(case.find("skipped") is not None for case in cases),
                "failed": [f"{case.get('classname')}.{case.get('name')}" for case in failed],
            }
        if result["failed"]:
            print(done.stdout[-5000:], flush=True)
        return {"folders": list(tests), **result, "seconds": round(time.perf_counter() - start, 1)}

    def run_calls(self, calls: int, seed: int) -> dict[str, Any]:
        """Run random calls of the loss. ``"wrong"`` counts those with a wrong result."""
        log = self.runs.folder / "fuzz_loss.json"
        log.unlink(missing_ok=True)
        options = ["--calls", str(calls), "--seed", str(seed), "--output", str(log)]
        done = self.python("-m", "tests.campaigns.fuzz_loss", *options)
        if not log.exists():
            print(done.stdout[-5000:], flush=True)
            return {"calls": 0}
        result = json.loads(log.read_text())
        kept = ("calls", "seed", "instruction_sets", "seconds")
        return {name: result[name] for name in kept} | {"wrong": len(result["faults"])}

    def plant(self, faults: dict[str, Fault]) -> dict[str, bool]:
        """Build with faults, and return which of them are reported. The copy keeps them until it is restored."""
        for fault in faults.values():
            path = self.folder / fault.file
            code = path.read_text()
            if code.count(fault.old) != 1:
                raise ValueError(f"{fault.file}: expected {fault.old!r} once, got {code.count(fault.old)} times")
            path.write_text(code.replace(fault.old, fault.new))
        self.build()
        found = {}
        for name, fault in faults.items():
            self.python("-c", fault.call)
            found[name] = any(fault.report in report for report in self.runs.take())
        return found


def run_campaign(calls: int, seed: int, folder: Path) -> dict[str, Any]:
    """Build and run everything below `folder`, and return the result, as the JSON file holds it."""
    # A shell makes its background jobs ignore SIGINT, which tests send to processes that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    start, runs = time.perf_counter(), Runs(folder)
    version = subprocess.run([compiler(), "--version"], check=True, capture_output=True, text=True).stdout
    thread_pool = ThreadPool(runs)
    stress = thread_pool.run(ROUNDS, seed)
    race = thread_pool.run(1, seed, race=True)["reports"]
    planted = {"data race": any("ThreadSanitizer: data race" in report for report in race)}
    checkout = Checkout(runs)
    checkout.build()
    with ThreadPoolExecutor() as pool:
        running = pool.submit(checkout.run_calls, calls, seed)
        tests, called = checkout.run_tests(*TESTS), running.result()
    reports = runs.take()
    planted |= checkout.plant(PLANTED)
    return {
        "campaign": "sanitizers",
        "compiler": version.splitlines()[0],
        "flags": list(FLAGS),
        "thread_pool": stress,
        "tests": tests,
        "random_calls": called,
        "reports": reports,
        "planted_faults_reported": planted,
        "seconds": round(time.perf_counter() - start, 1),
        "machine": machine(),
        "complete": called["calls"] == calls,
    }


def main() -> int:
    """Run the command line; the exit status is 1 if there is a report, a failed test or an unnoticed planted fault."""
    count = ("--calls", 5000, "random calls of the loss")
    result = run_command(__doc__, run_campaign, count=count, result=RESULT, reuses_folder=True)
    pool, tests = result["thread_pool"], result["tests"]
    reports = result["reports"] + pool["reports"]
    print(*reports, sep="\n")
    print(
        f"{len(reports)} reports; {tests['tests']} tests, {len(tests['failed'])} failed; "
        f"{result['random_calls']['calls']} random calls; planted: {result['planted_faults_reported']}"
    )
    passed = not reports and not tests["failed"] and pool["status"] == 0 and result["complete"]
    return 0 if passed and all(result["planted_faults_reported"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
