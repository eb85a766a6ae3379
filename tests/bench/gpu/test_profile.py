"""Profiles of calls on a GPU, read from events made by hand."""

from types import SimpleNamespace

import torch
from torch.autograd import DeviceType

from bench.gpu.profile import Busy, busy, on_device


def test_only_kernels_of_the_device_are_counted():
    def event(name, start, device, annotation=False):
        span = SimpleNamespace(start=start)
        return SimpleNamespace(name=name, time_range=span, device_type=device, is_user_annotation=annotation)

    events = [
        event("second", 2, DeviceType.CUDA),
        event("first", 1, DeviceType.CUDA),
        event("step", 0, DeviceType.CUDA, annotation=True),
        event("aten::add", 0, DeviceType.CPU),
    ]
    assert [event.name for event in on_device(events)] == ["first", "second"]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        torch.ones(3) + 1
    assert on_device(profiler.events()) == []


def test_busy_share_and_concurrency_of_overlapping_operations():
    # Two operations overlap, one lies inside another, then a gap, then one alone.
    assert busy([(0, 40), (10, 60), (20, 30), (80, 100)]) == Busy(4, 0.1, 0.8, 1.5)
