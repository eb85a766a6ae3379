"""Which kernels a call launches, and what memory it takes beside what is there already."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


def kernels_of(call: Callable[[], object]) -> list[str]:
    """Names of what one call runs on the GPU, copies and fills included, in order."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    return on_device(profiler.events())


def on_device(events: Iterable) -> list[str]:
    """Of a profile's events those of the GPU, but for the ranges that only annotate them."""
    ours = [e for e in events if e.device_type == DeviceType.CUDA and not getattr(e, "is_user_annotation", False)]
    return [event.name for event in sorted(ours, key=lambda event: event.time_range.start)]


def profiler_sees_kernels() -> bool:
    """Whether the profiler works here: some virtual machines hide it."""
    ones = torch.ones(8, device="cuda")
    kernels_of(lambda: ones + 1)  # the first profile of a process sets itself up
    return len(kernels_of(lambda: ones + 1)) == 1


def peak_extra_bytes(call: Callable[[], object]) -> int:
    """By how much a call raises the allocated memory at its highest."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
