"""The tests that need a GPU, a file in several processes.

They compile side by side, and a hang, or an error that the GPU keeps, ends one of them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .runner import kill

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = str(ROOT)
TAIL = 6000  # characters of a file's output that are kept where something failed
SHARDS = min(8, max(1, (os.cpu_count() or 2) // 2))
LINE = re.compile(r"^(\S+\.py(?:::.*?)?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.MULTILINE)
BEGUN = re.compile(r"^(\S+\.py::\S.*?) ?$")


# The step's parts come first, as all else is built on them and they compile little; then the ensemble loss.
FIRST = ("tests/parallel/test_gpu.py", "tests/training/test_engine_gpu.py", "tests/losses/test_ensemble_kd_gpu.py")


def files() -> list[str]:
    """Those with tests marked so, `FIRST` first."""
    marked = [path for path in (ROOT / "tests").rglob("test_*.py") if "pytest.mark.gpu" in path.read_text()]
    found = sorted(str(path.relative_to(ROOT)) for path in marked if path.name != "test_gpu_suite.py")
    return sorted(found, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))


def run_file(name: str, seconds: float, shards: int = SHARDS) -> dict:
    """All shards of a file, as one result."""
    with ThreadPoolExecutor(shards) as pool:
        parts = list(pool.map(lambda i: run_shard(name, seconds, f"{i}/{shards}"), range(shards)))
    counts: Counter = Counter()
    for part in parts:
        counts.update(part["counts"])
    merged: dict = {"ended": ", ".join(part["ended"] for part in parts), "counts": dict(counts)}
    merged["seconds"] = max(part["seconds"] for part in parts)
    for what in ("failures", "messages", "unfinished"):
        merged[what] = [entry for part in parts for entry in part.get(what, ())]
    merged["output_tails"] = [part["output_tail"] for part in parts if "output_tail" in part]
    return merged


def run_shard(name: str, seconds: float, shard: str) -> dict:
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "--tb=short", "-rfE", name]
    command += ["-p", "no:cacheprovider", "-p", "bench.gpu.shard", "--continue-on-collection-errors"]
    command += ["-o", f"faulthandler_timeout={max(20, int(seconds) - 5)}"]
    # From elsewhere the plugin would not be found.
    there = {
        **os.environ,
        "GPU_SHARD": shard,
        "PYTHONPATH": os.pathsep.join((PLUGINS, os.environ.get("PYTHONPATH", ""))),
    }
    start = time.monotonic()
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, env=there
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
    """Counts, failures and the end of what pytest -v printed, though it was killed."""
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


def run_all(seconds: float, update=lambda results: None) -> dict:
    deadline = time.monotonic() + seconds
    results: dict = {}
    for name in files():
        left = deadline - time.monotonic()
        limit = left if name == files()[-1] else 0.75 * left  # a file that hangs leaves the next one some time
        results[name] = run_file(name, limit) if left > 5 else {"ended": "not run: no time left", "counts": {}}
        update(results)
    total: Counter = Counter()
    for result in results.values():
        total.update(result["counts"])
    return {"counts": dict(total), "files": results}
