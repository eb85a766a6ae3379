"""The loss section of bench.gpu on the CPU, with stand-ins for the timers."""

import sys
import time
from types import ModuleType

import pytest
import torch

from bench.gpu import loss as gpu_loss

from .conftest import measured_loss

pytestmark = pytest.mark.usefixtures("one_thread")


def test_small_sizes_use_several_sets_beyond_the_cache():
    assert len(gpu_loss.keys()) == 14 and set(gpu_loss.keys(True)) < set(gpu_loss.keys())
    assert gpu_loss.parse("8192x1000 bfloat16") == (8192, 1000, torch.bfloat16)
    assert gpu_loss.number_of_sets(20 * 10**6) == 5
    assert gpu_loss.number_of_sets(10**9) == 1  # one set exceeds the cache
    assert gpu_loss.number_of_sets(10**4) == 1  # too many sets would be needed


def test_every_variant_of_the_loss_is_measured(no_gpu, monkeypatch):
    def divergence(reduction):
        return lambda log_q, t: torch.nn.functional.kl_div(log_q, t, reduction=reduction)

    fake = ModuleType("liger_kernel.transformers")
    fake.LigerCrossEntropyLoss, fake.LigerKLDIVLoss = torch.nn.CrossEntropyLoss, divergence
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", fake)
    before, after = measured_loss()
    names = {"value_and_grad", "differentiable", "eager", "liger"}
    assert before["device_ms"].keys() == names and "compiled" in before["skipped"]
    assert after["device_ms"].keys() == names | {"compiled"} and after["skipped"] == {}
    assert (
        after["launches"].keys() == after["wall_ms"].keys() == after["peak_extra_bytes"].keys() == names | {"compiled"}
    )
    sets = gpu_loss.make_sets(4, 6, torch.float32, "cpu")
    losses = [loss(*sets[0][:2]) for loss in (gpu_loss.naive_loss, gpu_loss.liger_loss())]
    torch.testing.assert_close(*losses)


def test_a_variant_that_fails_is_left_out_with_its_reason(no_gpu, monkeypatch):
    def too_large(*arguments):
        raise torch.cuda.OutOfMemoryError("no room")

    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    monkeypatch.setattr(gpu_loss, "naive_loss", too_large)
    *_, result = measured_loss()
    assert result["device_ms"].keys() == {"value_and_grad", "differentiable"}
    assert "no room" in result["skipped"]["eager"] and "liger" in result["skipped"]["liger"]


def test_the_compiler_is_not_started_without_time(no_gpu):
    *_, result = measured_loss(deadline=time.monotonic() + 1)
    assert "left of the section's time" in result["skipped"]["compiled"]
