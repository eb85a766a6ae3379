"""Measure the memory of one variant of the training step, and its first step, in a process of its own.

    python -m bench.step.probe VARIANT PROBLEM

PROBLEM is a StepProblem as JSON; the last line of the output is JSON. Memory is the peak during steps minus what the
process held before the variant was built: resident memory on a CPU, allocated memory on CUDA. It includes the images,
where they are on that device, and the graphs of a captured step, but not the peak of compiling. A tiny step comes
first, so that what the libraries load and keep is not counted.
"""

from __future__ import annotations

import argparse
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
    """Measure a variant in a new process.

    Raises:
        RuntimeError: the process failed, or took longer than `seconds`. The message is one line.
    """
    command = [sys.executable, "-m", "bench.step.probe", name, json.dumps(asdict(problem))]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"the first steps took longer than {seconds:.0f} s") from None
    if done.returncode != 0:
        output = done.stderr.strip().splitlines() or ["no message"]
        raise RuntimeError(f"its process ended with {done.returncode}: {output[-1][:300]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(name: str, problem: StepProblem) -> dict:
    """Measure a variant in this process, which should have done nothing else."""
    cuda = on_cuda(problem)
    if name.startswith("ours") or name in ALONE:
        keep_freed_memory()  # as oekd_fast.train does
    build("eager", replace(problem, num_students=2, batch_size=4, image_size=8, batches=1))
    gc.collect()
    before = torch.cuda.memory_allocated() if cuda else resident("VmRSS")
    start = time.perf_counter()
    # Students that train one after the other need as much memory at a time as the largest.
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
    """Return the resident bytes, now (VmRSS) or at the peak (VmHWM); ru_maxrss would include the parent's."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) * 1024


def reset_peak() -> None:
    """Set VmHWM to the resident memory of now."""
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", metavar="VARIANT")
    parser.add_argument("problem", metavar="PROBLEM", type=lambda text: StepProblem(**json.loads(text)))
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.variant, arguments.problem)))


if __name__ == "__main__":
    main()
