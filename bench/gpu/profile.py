"""The kernels that a call launches, how well they fill the GPU, and the memory that a call allocates."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Kernel:
    """An operation on the GPU, copies and fills included; start and end in microseconds."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class Busy:
    """Utilisation of the GPU by a call, from the start of its first operation to the end of its last.

    Attributes:
        launches: Number of operations.
        milliseconds: Duration of the call on the device.
        busy_share: Share of that time in which at least one operation runs.
        running: Mean number of concurrent operations while at least one runs.
    """

    launches: int
    milliseconds: float
    busy_share: float
    running: float


def kernels_of(call: Callable[[], object]) -> list[Kernel]:
    """Profile one call; return its operations on the GPU in the order of their starts."""
    return on_device(_profiled(call))


def busy(kernels: Sequence[Kernel]) -> Busy:
    """Summarise operations in the order of their starts."""
    first, covered = kernels[0].start, 0.0
    until = first
    for kernel in kernels:
        covered += max(0.0, kernel.end - max(kernel.start, until))
        until = max(until, kernel.end)
    whole, work = until - first, sum(kernel.end - kernel.start for kernel in kernels)
    return Busy(len(kernels), round(whole / 1e3, 4), round(covered / whole, 4), round(work / covered, 3))


def by_name(kernels: Iterable[Kernel], most: int = 30) -> list[tuple[str, int, float]]:
    """Return name, number and summed microseconds of the kernels that take longest in all, longest first."""
    numbers: Counter[str] = Counter()
    times: Counter[str] = Counter()
    for kernel in kernels:
        numbers[kernel.name] += 1
        times[kernel.name] += kernel.end - kernel.start
    return [(name, numbers[name], round(time, 2)) for name, time in times.most_common(most)]


def short(name: str, width: int) -> str:
    """Shorten the name of a kernel: without its return type, its parameters and the namespaces of torch."""
    name = re.sub(r"^void |\(anonymous namespace\)::|\bat::native::|\bcudnn::ops::|\bc10::", "", name)
    name = re.sub(r"\([^()]*\)( \[clone.*)?$", "", name)
    return name if len(name) <= width else name[: width - 3] + "..."


def _profiled(call: Callable[[], object]) -> Iterable:
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    return profiler.events()


def on_device(events: Iterable[Any]) -> list[Kernel]:
    """Return the GPU operations among a profile's events, without annotated ranges, ordered by their starts."""
    ours = [e for e in events if e.device_type == DeviceType.CUDA and not getattr(e, "is_user_annotation", False)]
    found = [Kernel(e.name, e.time_range.start, e.time_range.end) for e in ours]
    return sorted(found, key=lambda kernel: kernel.start)


def profiler_sees_kernels() -> bool:
    """Return whether the profiler records kernels on this machine; some virtual machines do not allow it."""
    ones = torch.ones(8, device="cuda")
    kernels_of(lambda: ones + 1)  # the first profile of a process initialises the profiler
    return len(kernels_of(lambda: ones + 1)) == 1


def peak_extra_bytes(call: Callable[[], object]) -> int:
    """Return how far a call raises the allocated memory at its peak."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
