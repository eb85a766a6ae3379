"""Stand-ins for a GPU: each call runs once on the CPU, and the times are fixed numbers."""

import json
import time

import pytest
import torch

from bench.gpu import loss as gpu_loss
from bench.measure import Timing


def timings(calls, seconds, repetitions=1, sample=None):
    """Call each variant once and return fixed times, in place of gpu_timing.in_turn."""
    for call in calls.values():
        call()
    return {name: Timing(2.0 + i, 1.5 + i, 2.5 + i, 10) for i, name in enumerate(calls)}


@pytest.fixture
def no_gpu(monkeypatch):
    """Replace everything that needs a GPU."""
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(gpu_loss, "in_turn", timings)
    monkeypatch.setattr(gpu_loss, "captured", lambda call, n: lambda: [call() for _ in range(n)])
    monkeypatch.setattr(gpu_loss, "peak_extra_bytes", lambda call: call() and 4_000_000)
    monkeypatch.setattr(gpu_loss, "kernels_of", lambda call: [call()])
    monkeypatch.setattr(gpu_loss, "profiler_sees_kernels", lambda: True)
    monkeypatch.setattr(gpu_loss, "REPETITIONS", 2)
    monkeypatch.setattr(gpu_loss, "make_sets", lambda *shape, of=gpu_loss.make_sets: of(*shape)[:2])
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


def measured_loss(key="8x30 float32", deadline=None):
    """Return the results that the loss section emits for a case, as they are read from the report."""
    emitted = []
    deadline = time.monotonic() + 100 if deadline is None else deadline
    gpu_loss.measure(key, lambda result: emitted.append(json.loads(json.dumps(result))), deadline, True, "cpu")
    return emitted
