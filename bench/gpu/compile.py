"""Compiles the kernels of the loss and BatchNorm in many processes, into Triton's cache, ahead of the measurements."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context

import torch

from oekd_fast.kernels.common.launch import Launch
from oekd_fast.kernels.ensemble_kd.launch import Problem, gradients_launch, loss_launch
from oekd_fast.kernels.norm_relu.launch import backward_launches, forward_launches
from oekd_fast.kernels.norm_relu.plan import plan_norm_relu

from ..ops.ensemble_kd import CE_WEIGHT, KD_WEIGHT, STUDENTS, TEMPERATURE
from .context import Context
from .device import Cuda, Device
from .loss import FEW
from .rehearsal import Rehearsal

DTYPES = ("bfloat16", "float32")
FORMS = ("value_and_grad", "value", "backward")
NORM_FORMS = ("residual", "relu", "alone")
# One of each set of numbers of channels that share compiled kernels.
NORM_CHANNELS = (3, 6, 8, 9, 16, 19, 32, 38, 64)


@dataclass(frozen=True)
class Job:
    """One compilation of a kernel of the ensemble loss."""

    classes: int
    dtype: str
    form: str

    def launches(self, device: str) -> list[Launch]:
        """Return a launch for two rows; the compiled kernel does not depend on the number of rows."""
        make = torch.zeros(STUDENTS, 2, self.classes, dtype=getattr(torch, self.dtype), device=device)
        logits = [z.clone() for z in make]
        target = torch.zeros(2, dtype=torch.int64, device=device)
        problem = Problem(logits, target, None, TEMPERATURE, CE_WEIGHT, KD_WEIGHT, 0.0, -100, True, True)
        grads = [torch.empty_like(z) for z in logits]
        if self.form == "backward":
            result, _ = loss_launch(problem, keep_rows=True)
            upstream = torch.ones((), device=device)
            return [gradients_launch(problem, grads, upstream, result.row_statistics, result.counted)]
        return [loss_launch(problem, grads if self.form == "value_and_grad" else ())[1]]


@dataclass(frozen=True)
class NormJob:
    """The compilations of the kernels of BatchNorm for a number of channels.

    Attributes:
        form: "residual", "relu" or "alone".
    """

    channels: int
    dtype: str
    form: str

    def launches(self, device: str) -> list[Launch]:
        """Return the launches for a map of 128 rows; the compiled kernels depend on whether 16 divides its size."""
        x = torch.zeros(2, 8, 8, self.channels, dtype=getattr(torch, self.dtype), device=device).permute(0, 3, 1, 2)
        numbers, plan = torch.ones(self.channels, device=device), plan_norm_relu(128, self.channels, x.element_size())
        residual, relu = x if self.form == "residual" else None, self.form != "alone"
        _, forward = forward_launches(x, numbers, numbers, residual, 1e-5, relu, plan)
        _, backward = backward_launches(
            x, x, residual, numbers, numbers, numbers, numbers, residual is not None, relu, plan
        )
        return [*forward, *backward]


def jobs(tiny: bool) -> list[Job]:
    """Return the jobs of the cases of `smoke_losses` and of the few sizes of `loss`, the slowest to compile first."""
    classes = (10,) if tiny else sorted({classes for _, classes in FEW}, reverse=True)
    return [Job(c, dtype, form) for c in classes for dtype in DTYPES for form in FORMS]


def norm_jobs(tiny: bool) -> list[NormJob]:
    """Return the jobs of the steps of the CIFAR-ResNets in bfloat16, with and without padded channels."""
    return [NormJob(c, "bfloat16", form) for c in ((3,) if tiny else NORM_CHANNELS) for form in NORM_FORMS]


def run(job: Job | NormJob, tiny: bool) -> int:
    """Compile the launches of a job, and return their number."""
    device: Device = Rehearsal() if tiny else Cuda()
    launches = job.launches(device.name)
    for launch in launches:
        device.compile(launch)
    return len(launches)


class InThisProcess(Executor):
    """Runs each call at once."""

    def submit(self, function: Callable, /, *arguments, **options) -> Future:
        future: Future = Future()
        try:
            future.set_result(function(*arguments, **options))
        except Exception as error:
            future.set_exception(error)
        return future


def keys(argument: str, tiny: bool) -> list[str]:
    return ["ensemble loss", "norms"]


def measure(key: str, context: Context) -> Iterator[dict]:
    """Yield the number of compiled kernels, the seconds, and the errors by job."""
    tiny, start = context.device.tiny, time.monotonic()
    processes = max(1, (os.cpu_count() or 2) - 2)
    kernels, errors = 0, {}
    with InThisProcess() if tiny else ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        found = {pool.submit(run, job, tiny): job for job in (norm_jobs if key == "norms" else jobs)(tiny)}
        for future in as_completed(found):
            if error := future.exception():
                errors[str(found[future])] = f"{type(error).__name__}: {error}"[:800]
            else:
                kernels += future.result()
    seconds = round(time.monotonic() - start, 1)
    yield {"kernels": kernels, "seconds": seconds, "errors": errors, "right": not errors}


def lines(key: str, result: dict) -> Iterator[str]:
    yield f"{key}: {result['kernels']} kernels compiled in {result['seconds']:.0f} s"
    yield from (f"  {job}: {error.splitlines()[0]}" for job, error in result["errors"].items())
