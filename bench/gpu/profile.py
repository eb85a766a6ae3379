"""The kernels that a call launches, how well they fill the GPU, and the memory that a call allocates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


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


def kernels_of(call: Callable[[], object]) -> list[str]:
    """Return the names of the operations of one call on the GPU, copies and fills included, in order."""
    return [event.name for event in on_device(_profiled(call))]


def busy_of(call: Callable[[], object]) -> Busy:
    """Profile one call."""
    return busy([(event.time_range.start, event.time_range.end) for event in on_device(_profiled(call))])


def busy(spans: list[tuple[float, float]]) -> Busy:
    """Summarise operations given as (start, end) in microseconds, ordered by their starts."""
    covered, until = 0.0, spans[0][0]
    for start, end in spans:
        covered += max(0.0, end - max(start, until))
        until = max(until, end)
    whole, work = until - spans[0][0], sum(end - start for start, end in spans)
    return Busy(len(spans), round(whole / 1e3, 4), round(covered / whole, 4), round(work / covered, 3))


def _profiled(call: Callable[[], object]) -> Iterable:
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    return profiler.events()


def on_device(events: Iterable) -> list:
    """Return the GPU operations among a profile's events, without annotated ranges, ordered by their starts."""
    ours = [e for e in events if e.device_type == DeviceType.CUDA and not getattr(e, "is_user_annotation", False)]
    return sorted(ours, key=lambda event: event.time_range.start)


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
