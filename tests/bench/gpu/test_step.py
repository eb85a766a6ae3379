"""The step section of bench.gpu, with steps and timers that are stand-ins."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bench.gpu import report as gpu_report
from bench.gpu import step as gpu_step
from bench.gpu.profile import Busy

from .conftest import timings

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def no_gpu_steps(no_gpu, monkeypatch):
    """Replace the steps by empty ones, and one of them by one that fails."""
    for name in ("memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda: 7_000_000)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(gpu_step.gpu_timing, "in_turn", timings)
    monkeypatch.setattr(gpu_step, "interleave", lambda calls, *arguments, **options: timings(calls, 0))
    monkeypatch.setattr(gpu_step, "profiler_sees_kernels", lambda: True)
    monkeypatch.setattr(gpu_step, "busy_of", lambda call: Busy(3, 0.5, 0.9, 2.0))
    monkeypatch.setattr(gpu_step, "floors", lambda problem, card: {"fused": 0.5})

    def build(name, problem):
        if name == "ours_one_stream":
            raise RuntimeError("not captured: out of memory")
        return SimpleNamespace(step=lambda: None)

    monkeypatch.setattr(gpu_step, "build", build)


@pytest.mark.slow
def test_every_variant_of_a_step_is_measured(no_gpu_steps):
    emitted = []
    gpu_step.measure("step resnet20 128", lambda r: emitted.append(json.loads(json.dumps(r))), 1e9, True)
    before, after = emitted
    assert "busy" not in before and after["busy"].keys() == {"ours_eager", "ours_captured"}
    assert after["variants"]["ours_one_stream"] is None and "out of memory" in after["reasons"]["ours_one_stream"]
    assert after["variants"]["published"]["ms"] == 2.0 and "compiled" not in after["variants"]
    text = "\n".join(gpu_report.step_lines(after))
    assert "3 launches, busy 90 %" in text and "time over the fused floor" in text and "over the largest alone" in text
    gpu_step.measure("compiled resnet110 128", emitted.append, 1e9, True)
    assert emitted[-1]["variants"].keys() == set(gpu_step.COMPILED) and emitted[-1]["speedups"]["ours_captured"]


def test_loss_curves_are_compared(no_gpu, monkeypatch):
    asked = {}

    def agreed(problem, names, steps, begin):
        asked.update(problem=problem, names=names, steps=steps)
        begin("published")
        return {"allowed": {}, "steps": steps, "variants": {}}

    monkeypatch.setattr(gpu_step, "agreed", agreed)
    emitted = []
    gpu_step.measure("curves resnet20 128", emitted.append, 1e9, False)
    assert asked["steps"] == 200 and "ours_captured" in asked["names"] and asked["problem"].precision == "bf16"
    assert emitted[0] == {"looking_at": "published"}  # a line for the runner
    assert [*gpu_report.step_lines(emitted[0])] == ["agreement: ended during published, not compared"]
    assert "over 200 steps" in next(gpu_report.step_lines(emitted[1]))


def test_sizes_of_the_step():
    assert {gpu_step.parse(key)[1].model for key in gpu_step.keys()} == {"resnet20", "resnet110"}
    assert {key.split()[0] for key in gpu_step.keys()} == {"step", "curves", "compiled"}
    assert set(gpu_step.keys(True)) < set(gpu_step.keys())
    assert gpu_step.floors(replace(gpu_step.parse("step resnet20 128")[1], num_students=1), "another card") == {}
