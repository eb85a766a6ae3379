"""Run the tests that need a GPU, each file in several processes.

The processes compile their kernels concurrently. A test that hangs, or that leaves the GPU unusable, ends only its own
process.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .context import Context
from .runner import kill

ROOT = Path(__file__).resolve().parents[2]  # of the tests, and of bench.gpu.shard
DRY_RUN = """
import pytest
pytestmark = pytest.mark.gpu
def test_first(): pass
def test_second(): pass
"""
TAIL = 6000  # characters of a file's output in the report, if something failed
SHARDS = min(8, max(1, (os.cpu_count() or 2) // 2))
LINE = re.compile(r"^(\S+\.py(?:::.*?)?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.MULTILINE)
BEGUN = re.compile(r"^(\S+\.py::\S.*?) ?$")
# The parts of the training step come first: everything else needs them, and they compile little.
FIRST = ("tests/parallel/test_gpu.py", "tests/training/test_engine_gpu.py", "tests/losses/test_ensemble_kd_gpu.py")


def files() -> list[str]:
    """Return the files with tests marked "gpu", those of `FIRST` first."""
    marked = [path for path in (ROOT / "tests").rglob("test_*.py") if "pytest.mark.gpu" in path.read_text()]
    # The tests of this module have the mark only in a text.
    found = sorted(str(path.relative_to(ROOT)) for path in marked if ROOT / "tests" / "bench" not in path.parents)
    return sorted(found, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))


def run_file(name: str, seconds: float, shards: int = SHARDS) -> dict:
    """Run all shards of a file concurrently and merge their results."""
    with ThreadPoolExecutor(shards) as pool:
        parts = list(pool.map(lambda i: run_shard(name, seconds, f"{i}/{shards}"), range(shards)))
    counts: Counter = Counter()
    for part in parts:
        counts.update(part["counts"])
    merged: dict = {"ended": ", ".join(part["ended"] for part in parts), "counts": dict(counts)}
    merged["seconds"] = max(part["seconds"] for part in parts)
    for what in ("failures", "messages", "unfinished"):
        merged[what] = [entry for part in parts for entry in part.get(what, ())]
    merged["right"] = not (merged["failures"] or merged["unfinished"])
    merged["output_tails"] = [part["output_tail"] for part in parts if "output_tail" in part]
    return merged


def run_shard(name: str, seconds: float, shard: str) -> dict:
    """Run one shard of a file, "i/n", for at most `seconds`."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "--tb=short", "-rfE", name]
    command += ["-p", "no:cacheprovider", "-p", "bench.gpu.shard", "--continue-on-collection-errors"]
    command += ["-o", f"faulthandler_timeout={max(20, int(seconds) - 5)}"]
    environment = {
        **os.environ,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # none is needed, whatever is installed
        "GPU_SHARD": shard,
        "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))),
    }
    start = time.monotonic()
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
        try:
            process.wait(max(seconds, 1.0))
            ended = f"exit status {process.returncode}"
        except subprocess.TimeoutExpired:
            kill(process)
            ended = f"killed after {seconds:.0f} s"
        out.seek(0)
        output = out.read().decode(errors="replace")
    return {"ended": ended, "seconds": round(time.monotonic() - start, 1), **parse(output)}


def parse(output: str) -> dict:
    """Read the output of pytest -v, complete or not: counts, failures, the unfinished test, and the end."""
    outcomes = LINE.findall(output)
    counts = Counter(outcome.lower() for _, outcome in outcomes)
    failures = [name for name, outcome in outcomes if outcome in ("FAILED", "ERROR")]
    result = {"counts": dict(counts), "failures": failures}
    messages = re.findall(r"^(?:FAILED|ERROR) (\S.*)$", output, re.MULTILINE)
    if messages:
        result["messages"] = [message[:400] for message in messages]
    last = output.splitlines()[-1] if output.strip() else ""
    if begun := BEGUN.match(last):
        result["unfinished"] = [begun[1]]
    if failures or messages or begun or "rror" in output:
        result["output_tail"] = output[-TAIL:]
    return result


def keys(argument: str, tiny: bool) -> list[str]:
    return ["dry run"] if tiny else files()


def measure(key: str, context: Context) -> Iterator[dict]:
    """Yield the outcomes of a file; in a dry run, of a file with two tests that need no GPU."""
    if context.device.tiny:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "test_dry_run.py")
            file.write_text(DRY_RUN)
            yield run_file(str(file), 60.0, shards=2)
    else:
        left = context.left()
        # So that a file which hangs leaves time for the next.
        yield run_file(key, left if key == files()[-1] else 0.75 * left)


def lines(key: str, result: dict) -> Iterator[str]:
    counts = ", ".join(f"{count} {name}" for name, count in result["counts"].items())
    yield f"{key}: {counts or 'no outcome'}"
    yield from (f"  {message}" for message in result["messages"])
    yield from (f"  did not finish: {test}" for test in result["unfinished"])
