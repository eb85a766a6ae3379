"""Timing on a GPU: variants are timed in turn; the events are stand-ins."""

import torch

from bench import gpu_timing
from bench.measure import Timing


def test_variants_are_timed_in_turn():
    called = []
    result = gpu_timing.in_turn(
        {"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 0.0, 4, sample=lambda call: call() or 8.0
    )
    assert called[-20:] == ["a", "b"] * 10
    assert result["a"] == Timing(2.0, 2.0, 2.0, 10)


def test_wall_time_is_sampled(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    timing = gpu_timing.wall_milliseconds(lambda: None, 2, 3)
    assert timing.samples == 3 and timing.median > 0
