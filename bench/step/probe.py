"""One variant of the training step in a process of its own: the memory it takes, and how long its first step lasts.

    python -m bench.step.probe VARIANT PROBLEM      # PROBLEM: fields of StepProblem as JSON; the last line is JSON

Memory is the peak during steps less what the process held before the variant was built: on a CPU of the resident set,
on CUDA of what is allocated. The split is part of it where it lies there, and so are the graphs of a captured step; the
peak of compiling is not. A tiny step comes before, for what the libraries load and keep.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from oekd_fast.runs.host_memory import keep_freed_memory

from .problem import StepProblem
from .variants import ALONE, build, on_cuda

ROOT = Path(__file__).resolve().parents[2]
STEPS = 3
MEGABYTE = 1e6


def probe(name: str, problem: StepProblem, seconds: float) -> dict:
    """What the process of one variant found.

    Raises:
        RuntimeError: it failed, or took longer than `seconds`; the message is one line.
    """
    command = [sys.executable, "-m", "bench.step.probe", name, json.dumps(asdict(problem))]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"the first steps took longer than {seconds:.0f} s") from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["nothing said"]
        raise RuntimeError(f"its process ended with {done.returncode}: {said[-1][:300]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(name: str, problem: StepProblem) -> dict:
    """In this process, which should have done nothing else."""
    cuda = on_cuda(problem)
    if name.startswith("ours") or name in ALONE:
        keep_freed_memory()  # as oekd_fast.train does
    build("eager", replace(problem, num_students=2, batch_size=4, image_size=8, batches=1))
    gc.collect()
    before = torch.cuda.memory_allocated() if cuda else resident("VmRSS")
    start = time.perf_counter()
    # One run after the other needs as much at a time as the largest does.
    variant = build("largest_alone" if name == "sequential" else name, problem)
    if cuda:
        torch.cuda.synchronize()
    first_step = time.perf_counter() - start
    if not cuda:
        reset_peak()
    for _ in range(STEPS):
        variant.step()
    if cuda:
        torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() if cuda else resident("VmHWM")
    return {"peak_memory_mb": round((peak - before) / MEGABYTE, 1), "first_step_seconds": round(first_step, 1)}


def resident(field: str) -> int:
    """Bytes now (VmRSS) or at most (VmHWM). Not ru_maxrss: that one starts from the parent's."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) * 1024


def reset_peak() -> None:
    """Let VmHWM begin at what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    name, problem = sys.argv[1], StepProblem(**json.loads(sys.argv[2]))
    print(json.dumps(measure(name, problem)))


if __name__ == "__main__":
    main()
