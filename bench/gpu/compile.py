"""Compile the kernels of the tests and benchmarks in many processes, into the caches of Triton and Inductor.

    python -m bench.gpu.compile FILE

Appends a line of JSON to FILE for each kernel, and {"tests": true} once the kernels of the tests are compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from oekd_fast.kernels.common.launch import Launch
from oekd_fast.kernels.ensemble_kd.launch import Problem, gradients_launch, loss_launch
from oekd_fast.kernels.ensemble_kd.plan import Plan

from ..model.roofline import SIZES
from ..ops import feature_kd
from ..ops.ensemble_kd import CE_WEIGHT, KD_WEIGHT, STUDENTS, TEMPERATURE
from ..step.variants import build
from . import feature as gpu_feature
from . import loss as gpu_loss
from . import step as gpu_step
from . import sweep as gpu_sweep

TEST_CLASSES = (2, 10, 100, 1000, 4096, 5000, 32000, 128256)
DTYPES = ("bfloat16", "float32", "float16")
FORMS = ("value_and_grad", "value", "backward")
INDUCTOR_PROCESSES = 3  # each of them starts several processes


@dataclass(frozen=True)
class Job:
    """One compilation of a kernel of the ensemble loss; no plan means the launcher's own."""

    classes: int
    dtype: str
    form: str
    plan: Plan | None = None

    def launch(self, device: str) -> Launch:
        """Return a launch for two rows; the compiled kernel does not depend on the number of rows."""
        make = torch.zeros(STUDENTS, 2, self.classes, dtype=getattr(torch, self.dtype), device=device)
        logits = [z.clone() for z in make]
        target = torch.zeros(2, dtype=torch.int64, device=device)
        problem = Problem(logits, target, None, TEMPERATURE, CE_WEIGHT, KD_WEIGHT, 0.0, -100, True, True)
        grads = [torch.empty_like(z) for z in logits]
        if self.form == "backward":
            result, _ = loss_launch(problem)
            upstream = torch.ones((), device=device)
            return gradients_launch(problem, grads, upstream, result.row_statistics, result.counted)
        return loss_launch(problem, grads if self.form == "value_and_grad" else (), plan=self.plan)[1]


def jobs_of_tests() -> list[Job]:
    """Return the jobs, the slowest to compile first."""
    return [Job(c, dtype, form) for c in reversed(TEST_CLASSES) for dtype in DTYPES for form in FORMS]


def jobs_of_sweep() -> list[Job]:
    """Return one job for all plans that differ only in the number of programs or in the lag: they share a kernel."""
    found: dict = {}
    for key in gpu_sweep.keys():
        _, classes, dtype = gpu_loss.parse(key)
        for candidate in gpu_sweep.candidates(STUDENTS, classes, dtype.itemsize)[1:]:
            p, name = candidate.plan, str(dtype).removeprefix("torch.")
            found.setdefault(
                (classes, name, p.regime, p.rows, p.block, p.tiles, p.warps), Job(classes, name, FORMS[0], p)
            )
    return list(found.values())


def compile_job(job: Job, device: str = "cuda") -> None:
    """Compile a kernel of the ensemble loss into Triton's cache."""
    launch = job.launch(device)
    launch.kernel.warmup(**launch.arguments, **launch.options, grid=(launch.programs,))


def inductor_keys() -> list[tuple[str, str]]:
    """Return section and key of each torch.compile: the slowest first, then small sizes, which also quick runs need."""
    step = [("step", key) for key in gpu_step.keys() if key.startswith("compiled resnet20")]
    loss = [("loss", f"{rows}x{classes} {dtype}") for dtype in DTYPES[:2] for rows, classes in SIZES]
    return [*step, *loss, *(("feature", key) for key in gpu_feature.keys())]


def compile_by_inductor(section: str, key: str) -> None:
    """Compile the "compiled" variant of a case into Inductor's cache."""
    if section == "loss":
        sets = gpu_loss.make_sets(*gpu_loss.parse(key), "cuda")[:1]
        gpu_loss.variants(sets)["compiled"]()()
    elif section == "step":
        build("compiled", gpu_step.parse(key)[1])
    else:
        text, dtype = key.split()
        block = feature_kd.Block.parse(text)
        feature_kd.variants(block, feature_kd.BATCH, getattr(torch, dtype), channels_last=True)["compiled"]()
    torch.compiler.reset()
    torch.cuda.empty_cache()


def compile_all(jobs: dict[str, tuple[Callable, tuple]], processes: int, say: Callable[..., None]) -> None:
    """Run functions with their arguments, given by name, in this order; report each one by `say`."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        start = time.monotonic()
        names = {pool.submit(function, *arguments): name for name, (function, arguments) in jobs.items()}
        for future in as_completed(names):
            error = future.exception()
            line = {"kernel": names[future], "after": round(time.monotonic() - start, 1)}
            say(**line, **({"error": f"{type(error).__name__}: {error}"[:800]} if error else {}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE")
    with parser.parse_args().file.open("a") as lines:

        def say(**line) -> None:
            lines.write(json.dumps(line) + "\n")  # in one call, since two threads write
            lines.flush()

        processes = max(1, (os.cpu_count() or 2) - 2)
        compile_all({str(job): (compile_job, (job,)) for job in jobs_of_tests()}, processes, say)
        say(tests=True)
        inductor = {" ".join(key): (compile_by_inductor, key) for key in inductor_keys()}
        sweep = {str(job): (compile_job, (job,)) for job in jobs_of_sweep()}
        with ThreadPoolExecutor(2) as both:
            parts = [both.submit(compile_all, inductor, INDUCTOR_PROCESSES, say)]
            parts.append(both.submit(compile_all, sweep, max(1, processes // 2), say))
        for part in parts:
            part.result()


if __name__ == "__main__":
    main()
