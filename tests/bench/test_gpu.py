"""What of bench.gpu needs no GPU: plans, the file as it grows, failing sections, tables. Timers are stand-ins."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from bench import gpu_timing
from bench.gpu import command as gpu_suite
from bench.gpu import loss as gpu_loss
from bench.gpu import report as gpu_report
from bench.gpu import runner as gpu_runner
from bench.gpu import step as gpu_step
from bench.gpu import tests as gpu_tests
from bench.gpu.profile import Busy, busy, on_device
from bench.measure import Timing
from bench.model import roofline

from ..conftest import TRITON

needs_triton = pytest.mark.skipif(not TRITON, reason="needs triton")
on_the_interpreter = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, bench.gpu itself runs")
pytestmark = pytest.mark.usefixtures("one_thread")


def timings(calls, seconds, repetitions=1, sample=None):
    """Each called once, as in_turn calls it many times."""
    for call in calls.values():
        call()
    return {name: Timing(2.0 + i, 1.5 + i, 2.5 + i, 10) for i, name in enumerate(calls)}


@pytest.fixture
def no_gpu(monkeypatch):
    """What only a GPU does, left out."""
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
    emitted = []
    deadline = time.monotonic() + 100 if deadline is None else deadline
    gpu_loss.measure(key, lambda result: emitted.append(json.loads(json.dumps(result))), deadline, True, "cpu")
    return emitted


def a_report(result):
    copy = {"2 GB": {"bytes": 4 * 10**9, "gigabytes_per_second": 4000.0}}
    where = {"gpu": "NVIDIA H200", "torch": "t", "triton": "r", "cuda": "c", "commit": "abc"}
    key = f"{result['rows']}x{result['classes']} {result['dtype']}"
    sections = {"copy": {"results": copy}, "loss": {"results": {key: result}}}
    return {"environment": where, "sections": sections}


# -- timing


def test_variants_are_timed_in_turn():
    called = []
    result = gpu_timing.in_turn(
        {"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 0.0, 4, sample=lambda call: call() or 8.0
    )
    assert called[-20:] == ["a", "b"] * 10
    assert result["a"] == Timing(2.0, 2.0, 2.0, 10)


def test_wall_time(no_gpu):
    assert 0 < gpu_timing.wall_milliseconds(lambda: None, 2, 3).median < 100


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


def test_how_busy_a_gpu_is():
    # Two side by side, one inside another, a gap, one alone.
    assert busy([(0, 40), (10, 60), (20, 30), (80, 100)]) == Busy(4, 0.1, 0.8, 1.5)


# -- the loss


def test_sizes_and_sets():
    assert len(gpu_loss.keys()) == 14 and set(gpu_loss.keys(True)) < set(gpu_loss.keys())
    assert gpu_loss.parse("8192x1000 bfloat16") == (8192, 1000, torch.bfloat16)
    assert gpu_loss.number_of_sets(20 * 10**6) == 5
    assert gpu_loss.number_of_sets(10**9) == 1  # beyond the cache by itself
    assert gpu_loss.number_of_sets(10**4) == 1  # never beyond it


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


def test_the_compiler_is_not_begun_without_time(no_gpu):
    *_, result = measured_loss(deadline=time.monotonic() + 1)
    assert "left of the section's time" in result["skipped"]["compiled"]


def test_an_error_that_the_gpu_keeps_ends_the_process(no_gpu, monkeypatch, tmp_path):
    def dead():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    assert not gpu_loss.is_fatal(ValueError("no"))
    assert not gpu_loss.is_fatal(torch.cuda.OutOfMemoryError("CUDA error: out of memory"))
    monkeypatch.setattr(torch.cuda, "synchronize", dead)
    file = tmp_path / "lines"
    status = gpu_runner.run_here(lambda *arguments: dead(), ["a", "b"], file, 100, False)
    assert status == 3
    begun, error = map(json.loads, file.read_text().splitlines())
    assert begun == {"begin": "a"} and "illegal" in error["error"]


# -- plans


@needs_triton
def test_plans_of_the_sweep():
    from bench.gpu.compile import inductor_keys, jobs_of_sweep, jobs_of_tests
    from bench.gpu.sweep import candidates, keys
    from oekd_fast.kernels.ensemble_kd.plan import WARP, plan_ensemble_kd, power_of_2

    assert len(keys()) == 8 and set(keys(True)) < set(keys())
    for key in keys():
        _, classes, dtype = gpu_loss.parse(key)
        found = candidates(5, classes, dtype.itemsize)
        assert found[0].plan == plan_ensemble_kd(5, classes, dtype.itemsize)
        assert 8 <= len(found) <= 25 and len({c.name for c in found}) == len(found)
        for plan in (c.plan for c in found):
            assert 1 <= plan.warps <= 16 and plan.programs_per_sm >= 1 and plan.tiles >= 1
            assert plan.block == power_of_2(plan.block) and plan.rows * plan.block >= WARP * plan.warps
            assert plan.regime == "streamed" or plan.block >= classes
    assert len(set(jobs_of_sweep())) == len(jobs_of_sweep()) and len(jobs_of_tests()) == 72
    assert {section for section, _ in inductor_keys()} == {"step", "loss", "feature"}


@needs_triton
@on_the_interpreter
@pytest.mark.parametrize("plan", [{}, {"regime": "streamed", "block": 128, "warps": 4}], ids=["resident", "streamed"])
def test_a_sweep(no_gpu, monkeypatch, plan):
    from dataclasses import replace

    from bench.gpu import sweep as gpu_sweep
    from oekd_fast.kernels.ensemble_kd.plan import plan_ensemble_kd

    base = replace(plan_ensemble_kd(5, 200, 4), **plan)
    some = [gpu_sweep.Candidate(base), gpu_sweep.Candidate(replace(base, programs_per_sm=2), 2.0 if plan else 1.0)]
    monkeypatch.setattr(gpu_sweep, "in_turn", timings)
    monkeypatch.setattr(gpu_sweep, "candidates", lambda *arguments: some)
    emitted = []
    gpu_sweep.measure("1x200 float32", emitted.append, time.monotonic() + 100, True, "cpu")
    assert emitted[-1]["relative"] == {some[0].name: 1.0, some[1].name: 1.5} and emitted[-1]["skipped"] == {}


@needs_triton
@on_the_interpreter
def test_kernels_to_compile_can_be_made():
    from bench.gpu.compile import FORMS, Job

    launches = [Job(10, "bfloat16", form).launch("cpu") for form in FORMS]
    assert [len(launch.arguments["grads"]) for launch in launches] == [5, 0, 5]


# -- the training step


@pytest.fixture
def no_gpu_steps(no_gpu, monkeypatch):
    """Steps that take no time, but one that fails."""
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


def test_steps_of_the_suite(no_gpu_steps):
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


def test_curves_of_the_suite(no_gpu, monkeypatch):
    asked = {}

    def agreed(problem, names, steps, begin):
        asked.update(problem=problem, names=names, steps=steps)
        begin("published")
        return {"allowed": {}, "steps": steps, "variants": {}}

    monkeypatch.setattr(gpu_step, "agreed", agreed)
    emitted = []
    gpu_step.measure("curves resnet20 128", emitted.append, 1e9, False)
    assert asked["steps"] == 200 and "ours_captured" in asked["names"] and asked["problem"].precision == "bf16"
    assert emitted[0] == {"looking_at": "published"}  # so that the runner hears of it
    assert [*gpu_report.step_lines(emitted[0])] == ["agreement: ended at published, not compared"]
    assert "over 200 steps" in next(gpu_report.step_lines(emitted[1]))


def test_sizes_of_the_step():
    assert {gpu_step.parse(key)[1].model for key in gpu_step.keys()} == {"resnet20", "resnet110"}
    assert {key.split()[0] for key in gpu_step.keys()} == {"step", "curves", "compiled"}
    assert set(gpu_step.keys(True)) < set(gpu_step.keys())
    assert gpu_step.floors(replace(gpu_step.parse("step resnet20 128")[1], num_students=1), "another card") == {}


# -- sections, the file


CASES = """
import json, os, sys, time
lines, keys = open(sys.argv[2], "a"), [a for a in sys.argv[3:] if a[0] in "abcdh" and len(a) == 1]
def say(**line):
    lines.write(json.dumps(line) + "\\n"); lines.flush()
for key in keys:
    say(begin=key)
    if key == "b":
        say(key=key, error="Oh")
        continue
    say(key=key, result=key * 2)
    if key == "c":
        print("dying"); sys.stdout.flush(); os._exit(9)
    if key == "h":
        time.sleep(100)
    say(done=key)
"""


def test_cases_that_fail_die_or_hang_leave_the_others_alone(tmp_path, monkeypatch):
    (tmp_path / "cases.py").write_text(CASES)
    monkeypatch.setattr(gpu_runner, "ROOT", tmp_path)
    seen = []
    state = gpu_runner.run_cases(
        "loss", list("abchd"), 20, case_seconds=0.8, update=lambda s: seen.append(len(s["results"])), module="cases"
    )
    assert state["results"] == {"a": "aa", "c": "cc", "h": "hh", "d": "dd"} and state["not_run"] == []
    assert state["errors"]["b"] == "Oh" and "silent for" in state["errors"]["h"]
    assert "ended with 9" in state["errors"]["c"] and "dying" in state["errors"]["c"]
    assert seen[-1] == 4 and sorted(seen) == seen
    monkeypatch.setattr(gpu_runner, "ROOT", tmp_path / "..")
    state = gpu_runner.run_cases("loss", ["a"], 20, module="not_there")
    assert state["not_run"] == ["a"] and "not_there" in state["errors"]["start"]


def test_a_section_that_fails_is_written_down_and_the_file_is_always_whole(tmp_path):
    report = gpu_suite.Report(tmp_path / "deep" / "out.json", {"gpu": "none"})
    gpu_suite.guarded(report, "good", 5.0, lambda seconds: {"results": {"seconds": seconds}})
    on_disk = json.loads(report.path.read_text())
    assert on_disk["sections"]["good"]["results"] == {"seconds": 5.0}
    gpu_suite.guarded(report, "bad", 5.0, lambda seconds: 1 / 0)
    gpu_suite.guarded(report, "late", 0.0, lambda seconds: {"results": {}})
    on_disk = json.loads(report.path.read_text())["sections"]
    assert "ZeroDivisionError" in on_disk["bad"]["errors"]["section"]
    assert "no time left" in on_disk["late"]["errors"]["section"]
    assert list(on_disk) == ["good", "bad", "late"] and [p.name for p in report.path.parent.iterdir()] == ["out.json"]


def test_the_whole_suite_goes_through_its_sections(tmp_path, monkeypatch, no_gpu):
    result = measured_loss()[-1]

    def run_cases(section, keys, seconds, *, quick, case_seconds, update):
        if section == "sweep":
            raise OSError("no process")
        state = {"results": {}, "errors": {}, "not_run": []}
        if section == "loss":
            state = {"results": {"8x30 float32": result}, "errors": {"x": "Oh\nno"}, "not_run": ["y"]}
        update(state)
        return state

    class Compiling:
        def __init__(self, folder):
            pass

        def wait_for_tests(self, seconds):
            return {"kernels": 1}

        wait = wait_for_tests

        def stop(self):
            pass

    one = {"ended": "exit status 1", "counts": {"failed": 1}, "messages": ["a.py::b - Oh"], "unfinished": ["a.py::c"]}
    of_tests = {"counts": {"passed": 3}, "files": {"a.py": one}}
    monkeypatch.setattr(gpu_suite, "run_cases", run_cases)
    monkeypatch.setattr(gpu_suite, "Compiling", Compiling)
    monkeypatch.setattr(gpu_suite, "run_all", lambda seconds, update: update({}) or of_tests)
    report = gpu_suite.Report(tmp_path / "out.json", gpu_suite.environment() | {"gpu": "NVIDIA H200"})
    gpu_suite.run_suite(report, quick=False)
    written = json.loads(report.path.read_text())
    assert written["sections"].keys() == {"compile", "tests", "copy", "loss", "sweep", "feature", "step"}
    assert all("seconds" in section for section in written["sections"].values())
    assert "no process" in written["sections"]["sweep"]["errors"]["section"]
    text = "\n".join(gpu_report.lines(written))
    assert "ERROR loss x: no" in text and "not run, loss: y" in text and "tests: 3 passed" in text
    assert "a.py::b - Oh" in text and "did not finish: a.py::c" in text
    assert sum(gpu_suite.BUDGETS.values()) <= gpu_suite.TOTAL_SECONDS


def test_compiling_is_watched(tmp_path, monkeypatch):
    script = 'open(sys.argv[1], "a").write(\'{"kernel": "k", "error": "E"}\\n{"tests": true}\\n\'); time.sleep(100)'
    (tmp_path / "bench" / "gpu").mkdir(parents=True)
    (tmp_path / "bench" / "gpu" / "compile.py").write_text(f"import sys, time\n{script}")
    monkeypatch.setattr(gpu_suite, "ROOT", tmp_path)
    compiling = gpu_suite.Compiling(tmp_path)
    try:
        state = compiling.wait_for_tests(5.0)
        assert state == {"kernels": 1, "tests_done": True, "errors": {"k": "E"}}
        assert compiling.wait(0.1)["errors"] == {"k": "E"}
        assert compiling.process.poll() is not None
    finally:
        compiling.stop()


def test_card_and_file_name(monkeypatch):
    assert gpu_suite.slug("NVIDIA H200 (141 GB)") == "nvidia_h200_141_gb"
    answer = SimpleNamespace(stdout="NVIDIA H200, 580.1, 143771 MiB, 1980 MHz\n")
    monkeypatch.setattr(gpu_suite.subprocess, "run", lambda *args, **kwargs: answer)
    assert gpu_suite.query_card()["nvidia_smi"]["driver_version"] == "580.1"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu_suite"])
    with pytest.raises(SystemExit) as stopped:
        gpu_suite.main()
    assert stopped.value.code == 2 and "needs a CUDA device" in capsys.readouterr().err


# -- pytest's output


def test_files_with_gpu_tests():
    files = gpu_tests.files()
    assert tuple(files[: len(gpu_tests.FIRST)]) == gpu_tests.FIRST and "tests/losses/test_feature_kd_gpu.py" in files
    assert len(set(files)) == len(files)


def test_the_output_of_pytest_is_read(tmp_path, monkeypatch):
    code = "import pytest\n@pytest.mark.gpu\ndef test_{}(): assert {}\n"
    (tmp_path / "test_a.py").write_text(code.format("good", 1) + code.format("bad", 0) + code.format("better", 2))
    monkeypatch.setattr(gpu_tests, "ROOT", tmp_path)
    result = gpu_tests.run_file("test_a.py", 30, shards=2)
    assert result["counts"] == {"passed": 2, "failed": 1} and result["failures"] == ["test_a.py::test_bad"]
    assert result["ended"] == "exit status 0, exit status 1" and "assert 0" in result["messages"][0]
    killed = "collecting ...\ntests/a.py::test_x PASSED [ 50%]\ntests/a.py::test_y[1-b c] "
    read = gpu_tests.parse(killed)
    assert read["counts"] == {"passed": 1} and read["unfinished"] == ["tests/a.py::test_y[1-b c]"]
    assert gpu_tests.parse("")["counts"] == {}


# -- tables


def test_figures_that_follow(no_gpu):
    result = {"rows": 8192, "classes": 32000, "dtype": "bfloat16", "device_ms": {"value_and_grad": {"median": 2.0}}}
    result["device_ms"] |= {"eager": {"median": 20.0}}
    derived = gpu_report.derive(result, 4e12, "NVIDIA H200")["value_and_grad"]
    moved = roofline.value_and_grad(roofline.Problem(5, 8192, 32000, 2)).bytes
    assert derived["gigabytes_per_second"] == pytest.approx(moved / 2e-3 / 1e9, abs=0.1)
    assert derived["share_of_copy"] == pytest.approx(moved / 2e-3 / 4e12, abs=1e-4)
    assert 0 < derived["share_of_floor"] < 1 and derived["faster_than"] == {"eager": 10.0}
    assert "share_of_copy" not in gpu_report.derive(result, None)["value_and_grad"]


def test_the_child_process_starts(tmp_path):
    command = [sys.executable, "-m", "bench.gpu.runner", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(gpu_runner.ROOT))
    assert done.returncode == 0 and "--seconds" in done.stdout
