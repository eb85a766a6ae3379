"""Plans of the sweep, and the kernels that are compiled beforehand."""

import time
from dataclasses import replace

import pytest
import torch

from bench.gpu import loss as gpu_loss

from .conftest import timings

pytest.importorskip("triton", reason="plans are of Triton kernels")

from bench.gpu import sweep as gpu_sweep  # noqa: E402
from bench.gpu.compile import FORMS, Job, inductor_keys, jobs_of_sweep, jobs_of_tests  # noqa: E402
from oekd_fast.kernels.ensemble_kd.plan import WARP, plan_ensemble_kd, power_of_2  # noqa: E402

on_the_interpreter = pytest.mark.skipif(torch.cuda.is_available(), reason="bench.gpu itself runs on a GPU")
pytestmark = pytest.mark.usefixtures("one_thread")


def test_plans_of_the_sweep():
    assert len(gpu_sweep.keys()) == 8 and set(gpu_sweep.keys(True)) < set(gpu_sweep.keys())
    for key in gpu_sweep.keys():
        _, classes, dtype = gpu_loss.parse(key)
        found = gpu_sweep.candidates(5, classes, dtype.itemsize)
        assert found[0].plan == plan_ensemble_kd(5, classes, dtype.itemsize)
        assert 8 <= len(found) <= 25 and len({c.name for c in found}) == len(found)
        for plan in (c.plan for c in found):
            assert 1 <= plan.warps <= 16 and plan.programs_per_sm >= 1 and plan.tiles >= 1
            assert plan.block == power_of_2(plan.block) and plan.rows * plan.block >= WARP * plan.warps
            assert plan.regime == "streamed" or plan.block >= classes


def test_kernels_to_compile_are_listed_once():
    assert len(set(jobs_of_sweep())) == len(jobs_of_sweep()) and len(jobs_of_tests()) == 72
    assert {section for section, _ in inductor_keys()} == {"step", "loss", "feature"}


@on_the_interpreter
@pytest.mark.parametrize("plan", [{}, {"regime": "streamed", "block": 128, "warps": 4}], ids=["resident", "streamed"])
def test_plans_are_timed_against_the_chosen_one(no_gpu, monkeypatch, plan):
    base = replace(plan_ensemble_kd(5, 200, 4), **plan)
    some = [gpu_sweep.Candidate(base), gpu_sweep.Candidate(replace(base, programs_per_sm=2), 2.0 if plan else 1.0)]
    monkeypatch.setattr(gpu_sweep, "in_turn", timings)
    monkeypatch.setattr(gpu_sweep, "candidates", lambda *arguments: some)
    emitted = []
    gpu_sweep.measure("1x200 float32", emitted.append, time.monotonic() + 1000, True, "cpu")
    assert emitted[-1]["relative"] == {some[0].name: 1.0, some[1].name: 1.5} and emitted[-1]["skipped"] == {}


@on_the_interpreter
def test_launches_to_compile_can_be_made():
    launches = [Job(10, "bfloat16", form).launch("cpu") for form in FORMS]
    assert [len(launch.arguments["grads"]) for launch in launches] == [5, 0, 5]
