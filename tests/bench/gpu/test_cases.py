"""Cases of bench.gpu: their sizes, variants that fail, profiles of kernels, and the output of other programs."""

import sys
import time
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from bench.gpu import device as gpu_device
from bench.gpu import loss as gpu_loss
from bench.gpu import memcheck, rehearsal
from bench.gpu import step as gpu_step
from bench.gpu import tests as gpu_tests
from bench.gpu.profile import Busy, Kernel, busy, by_name, on_device, short

pytest.importorskip("triton", reason="the kernels are Triton's")

from bench.gpu import compile as gpu_compile  # noqa: E402
from bench.gpu import sweep as gpu_sweep  # noqa: E402
from oekd_fast.kernels.ensemble_kd.plan import WARP, plan_ensemble_kd, power_of_2  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


# -- the loss


def test_small_sizes_use_several_sets_beyond_the_cache():
    few, others = gpu_loss.keys("few", False), gpu_loss.keys("others", False)
    assert len(few) == 8 and len(others) == 6 and not set(few) & set(others)
    assert gpu_loss.parse("8192x1000 bfloat16") == (8192, 1000, torch.bfloat16)
    assert gpu_loss.number_of_sets(20 * 10**6) == 5
    assert gpu_loss.number_of_sets(10**9) == 1  # one set exceeds the cache
    assert gpu_loss.number_of_sets(10**4) == 1  # too many sets would be needed


def test_variants_that_fail_are_left_out_with_their_reason(rehearsal, monkeypatch):
    def too_large(*arguments):
        raise torch.cuda.OutOfMemoryError("no room")

    monkeypatch.setattr(gpu_loss, "naive_loss", too_large)
    late = replace(rehearsal, deadline=time.monotonic() + 1)
    (result,) = gpu_loss.measure("2x10 float32", late)  # no time for torch.compile
    assert result["device_ms"].keys() == {"value_and_grad", "differentiable"}
    assert "no room" in result["skipped"]["eager"] and "s left" in result["skipped"]["compiled"]
    assert "eager            not measured: OutOfMemoryError: no room" in "\n".join(gpu_loss.lines("k", result))


def test_liger_computes_the_same_loss(monkeypatch):
    def divergence(reduction):
        return lambda log_q, t: torch.nn.functional.kl_div(log_q, t, reduction=reduction)

    fake = ModuleType("liger_kernel.transformers")
    fake.LigerCrossEntropyLoss, fake.LigerKLDIVLoss = torch.nn.CrossEntropyLoss, divergence
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", fake)
    (logits, target, _), *_ = gpu_loss.make_sets(4, 6, torch.float32, "cpu")
    torch.testing.assert_close(*(loss(logits, target) for loss in (gpu_loss.naive_loss, gpu_loss.liger_loss())))


def test_plans_of_the_sweep():
    for key in gpu_sweep.keys("", False):
        _, classes, dtype = gpu_loss.parse(key)
        found = gpu_sweep.candidates(5, classes, dtype.itemsize)
        assert found[0].plan == plan_ensemble_kd(5, classes, dtype.itemsize)
        assert 8 <= len(found) <= 25 and len({c.name for c in found}) == len(found)
        for plan in (c.plan for c in found):
            assert 1 <= plan.warps <= 16 and plan.programs_per_sm >= 1 and plan.tiles >= 1
            assert plan.block == power_of_2(plan.block) and plan.rows * plan.block >= WARP * plan.warps
            assert plan.regime == "streamed" or plan.block >= classes


def test_kernels_to_compile():
    jobs = gpu_compile.jobs(tiny=False)
    assert len(jobs) == len(set(jobs)) == 24 and jobs[0].classes == 32000
    assert {job.classes for job in jobs} >= {100, 1000, 32000}  # those of the smoke test


def test_norms_to_compile():
    """Every number of channels of a student shares its compiled kernels with one of the jobs."""

    def constants(channels):
        launches = gpu_compile.NormJob(channels, "bfloat16", "relu").launches("meta")
        return [[(name, v) for name, v in launch.arguments.items() if name.isupper()] for launch in launches]

    compiled = [constants(job.channels) for job in gpu_compile.norm_jobs(tiny=False) if job.form == "relu"]
    assert len(compiled) == 9
    for channels in (*(16, 12, 9, 6, 3), *(32, 25, 19), *(64, 51, 38), *(8, 24, 40, 48, 56)):
        assert constants(channels) in compiled, channels


def test_a_kernel_that_does_not_compile_is_named(rehearsal, monkeypatch):
    def fail(self, launch):
        raise ValueError("no ptxas")

    monkeypatch.setattr(rehearsal.device.__class__, "compile", fail)
    monkeypatch.setattr(gpu_compile, "jobs", lambda tiny: [gpu_compile.Job(10, "float32", "value")])
    (result,) = gpu_compile.measure("ensemble loss", rehearsal)
    assert result["kernels"] == 0 and not result["right"] and "ValueError: no ptxas" in str(result["errors"])


# -- the step


def test_a_variant_of_the_step_that_fails_is_left_out(rehearsal, monkeypatch):
    def step(self, name, problem):
        if name == "ours_one_stream":
            raise RuntimeError("not captured: out of memory\nmore")
        return SimpleNamespace(step=lambda: None), {"peak_memory_mb": 1.0, "first_step_seconds": 0.5}

    monkeypatch.setattr(rehearsal.device.__class__, "step", step)
    monkeypatch.setattr(rehearsal.device.__class__, "kernels", lambda self, call: None)  # profiles are not allowed
    *_, result = gpu_step.measure("step resnet20 128", rehearsal)
    assert result["variants"]["ours_one_stream"] is None and result["profiles"] == {}
    assert result["reasons"] == {"ours_one_stream": "RuntimeError: not captured: out of memory"}
    del result["profiles"]
    assert "not measured: RuntimeError" in "\n".join(gpu_step.lines("k", result))


def test_problems_of_the_step():
    kind, problem = gpu_step.parse("published resnet110 512", gpu_device.Cuda())
    assert kind == "published" and (problem.model, problem.batch_size, problem.precision) == ("resnet110", 512, "bf16")
    assert problem.device == "cuda" and problem.num_students == 5
    assert gpu_step.parse("step resnet110 128", rehearsal.Rehearsal())[1].model == "resnet20"


def test_a_replay_runs_the_call():
    recorder, ran = rehearsal.Replay(), []
    recorder.warm_up(lambda: ran.append(0), 3)
    recorder.record(lambda: ran.append(1), [])()
    recorder.mark()()
    assert ran == [0, 1] and recorder.needed_bytes() == recorder.free_bytes()


# -- profiles


def test_only_kernels_of_the_device_are_counted():
    def event(name, start, device, annotation=False):
        span = SimpleNamespace(start=start, end=start + 1)
        return SimpleNamespace(name=name, time_range=span, device_type=device, is_user_annotation=annotation)

    events = [
        event("second", 2, DeviceType.CUDA),
        event("first", 1, DeviceType.CUDA),
        event("step", 0, DeviceType.CUDA, annotation=True),
        event("aten::add", 0, DeviceType.CPU),
    ]
    assert on_device(events) == [Kernel("first", 1, 2), Kernel("second", 2, 3)]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        torch.ones(3) + 1
    assert on_device(profiler.events()) == []


def test_busy_share_and_concurrency_of_overlapping_operations():
    # Two operations overlap, one lies inside another, then a gap, then one alone.
    spans = [("a", 0, 40), ("b", 10, 60), ("a", 20, 30), ("c", 80, 100)]
    kernels = [Kernel(*span) for span in spans]
    assert busy(kernels) == Busy(4, 0.1, 0.8, 1.5)
    assert by_name(kernels) == [("a", 2, 50), ("b", 1, 50), ("c", 1, 20)] and len(by_name(kernels, 1)) == 1


def test_names_of_kernels_are_shortened():
    name = "void at::native::(anonymous namespace)::reduce<float, 4>(int, float*)"
    assert short(name, 40) == "reduce<float, 4>" and short(name, 10) == "reduce<..."
    assert short("sm90_xmma_fprop", 40) == "sm90_xmma_fprop"


# -- other programs


def test_the_output_of_memcheck_is_read(rehearsal, monkeypatch):
    outputs = iter(
        [("x\n========= ERROR SUMMARY: 2 errors\n", 9), ("========= ERROR SUMMARY: 0 errors\n", 9), ("?", 1)]
    )
    monkeypatch.setattr(rehearsal.device.__class__, "checked", lambda self, module, seconds: next(outputs))
    (result,) = memcheck.measure("streamed", rehearsal)
    assert result["errors"] == 2 and not result["right"] and "SUMMARY" in result["output"]
    (result,) = memcheck.measure("streamed", rehearsal)
    assert not result["right"]  # the program itself failed
    with pytest.raises(RuntimeError, match="expected a line 'ERROR SUMMARY', exit status 1, got\n\\?"):
        next(memcheck.measure("streamed", rehearsal))


def test_compute_sanitizer_is_found_in_the_folder_of_cuda(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="compute-sanitizer: expected it on PATH or in CUDA_HOME/bin"):
        gpu_device.sanitizer()
    tool = tmp_path / "bin" / "compute-sanitizer"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\necho "$@"\nexit 9\n')
    tool.chmod(0o755)
    assert gpu_device.sanitizer() == str(tool)
    output, status = gpu_device.Cuda().checked("a.module", 10.0)
    assert status == 9 and output.startswith("--tool memcheck") and output.endswith("-m a.module\n")


def test_files_with_gpu_tests():
    files = gpu_tests.files()
    assert tuple(files[: len(gpu_tests.FIRST)]) == gpu_tests.FIRST and "tests/losses/test_feature_kd_gpu.py" in files
    assert not [name for name in files if name.startswith("tests/bench/")]
    assert len(set(files)) == len(files) and gpu_tests.keys("", False) == files


def test_the_output_of_pytest_is_read():
    killed = "collecting ...\ntests/a.py::test_x PASSED [ 50%]\ntests/a.py::test_y[1-b c] "
    read = gpu_tests.parse(killed)
    assert read["counts"] == {"passed": 1} and read["unfinished"] == ["tests/a.py::test_y[1-b c]"]
    assert gpu_tests.parse("")["counts"] == {}
    failed = "a.py::x FAILED\n= short test summary info =\nFAILED a.py::x - assert 0\n"
    read = gpu_tests.parse(failed)
    assert read["failures"] == ["a.py::x"] and read["messages"] == ["a.py::x - assert 0"]


def test_outcomes_of_shards_are_merged(monkeypatch):
    shards = {
        "0/2": {"ended": "exit status 1", "seconds": 2.0, "counts": {"failed": 1}, "failures": ["f"],
                "messages": ["f - no"]},
        "1/2": {"ended": "killed after 9 s", "seconds": 9.0, "counts": {"passed": 2}, "unfinished": ["u"]},
    }  # fmt: skip
    monkeypatch.setattr(gpu_tests, "run_shard", lambda name, seconds, shard: shards[shard])
    result = gpu_tests.run_file("a.py", 10.0, shards=2)
    assert result["counts"] == {"failed": 1, "passed": 2} and not result["right"] and result["seconds"] == 9.0
    assert list(gpu_tests.lines("a.py", result)) == ["a.py: 1 failed, 2 passed", "  f - no", "  did not finish: u"]
