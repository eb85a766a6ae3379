"""The report of bench.gpu: it is always complete, and a failing section does not end the run."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from bench.gpu import command as gpu_command
from bench.gpu import compile_process
from bench.gpu import environment as gpu_environment
from bench.gpu import report as gpu_report

from .conftest import measured_loss

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_failing_section_is_recorded_and_the_file_is_complete(tmp_path):
    report = gpu_command.Report(tmp_path / "deep" / "out.json", {"gpu": "none"})
    gpu_command.guarded(report, "good", 5.0, lambda seconds: {"results": {"seconds": seconds}})
    on_disk = json.loads(report.path.read_text())
    assert on_disk["sections"]["good"]["results"] == {"seconds": 5.0}
    gpu_command.guarded(report, "bad", 5.0, lambda seconds: 1 / 0)
    gpu_command.guarded(report, "late", 0.0, lambda seconds: {"results": {}})
    on_disk = json.loads(report.path.read_text())["sections"]
    assert "ZeroDivisionError" in on_disk["bad"]["errors"]["section"]
    assert "no time left" in on_disk["late"]["errors"]["section"]
    assert list(on_disk) == ["good", "bad", "late"] and [p.name for p in report.path.parent.iterdir()] == ["out.json"]


def test_a_run_goes_through_all_sections(tmp_path, monkeypatch, no_gpu):
    result = measured_loss()[-1]

    def run_cases(section, keys, seconds, *, quick, case_seconds, update):
        if section == "sweep":
            raise OSError("no process")
        state = {"results": {}, "errors": {}, "not_run": []}
        if section == "loss":
            state = {"results": {"8x30 float32": result}, "errors": {"x": "Oh\nno"}, "not_run": ["y"]}
        update(state)
        return state

    class CompileProcess:
        def __init__(self, folder):
            pass

        def wait_for_tests(self, seconds):
            return {"kernels": 1}

        wait = wait_for_tests

        def stop(self):
            pass

    one = {"ended": "exit status 1", "counts": {"failed": 1}, "messages": ["a.py::b - Oh"], "unfinished": ["a.py::c"]}
    of_tests = {"counts": {"passed": 3}, "files": {"a.py": one}}
    monkeypatch.setattr(gpu_command, "run_cases", run_cases)
    monkeypatch.setattr(gpu_command, "CompileProcess", CompileProcess)
    monkeypatch.setattr(gpu_command, "run_all", lambda seconds, update: update({}) or of_tests)
    report = gpu_command.Report(tmp_path / "out.json", gpu_environment.environment() | {"gpu": "NVIDIA H200"})
    gpu_command.run_suite(report, quick=False)
    written = json.loads(report.path.read_text())
    assert written["sections"].keys() == {"compile", "tests", "copy", "loss", "sweep", "feature", "step"}
    assert all("seconds" in section for section in written["sections"].values())
    assert "no process" in written["sections"]["sweep"]["errors"]["section"]
    text = "\n".join(gpu_report.lines(written))
    assert "ERROR loss x: no" in text and "not run, loss: y" in text and "tests: 3 passed" in text
    assert "a.py::b - Oh" in text and "did not finish: a.py::c" in text
    assert sum(gpu_command.BUDGETS.values()) <= gpu_command.TOTAL_SECONDS


def test_the_compile_process_is_watched(tmp_path, monkeypatch):
    script = 'open(sys.argv[1], "a").write(\'{"kernel": "k", "error": "E"}\\n{"tests": true}\\n\'); time.sleep(100)'
    (tmp_path / "bench" / "gpu").mkdir(parents=True)
    (tmp_path / "bench" / "gpu" / "compile.py").write_text(f"import sys, time\n{script}")
    monkeypatch.setattr(compile_process, "ROOT", tmp_path)
    compiling = compile_process.CompileProcess(tmp_path)
    try:
        state = compiling.wait_for_tests(120.0)
        assert state == {"kernels": 1, "tests_done": True, "errors": {"k": "E"}}
        assert compiling.wait(0.1)["errors"] == {"k": "E"}
        assert compiling.process.poll() is not None
    finally:
        compiling.stop()


def test_card_and_file_name(monkeypatch):
    assert gpu_environment.slug("NVIDIA H200 (141 GB)") == "nvidia_h200_141_gb"
    answer = SimpleNamespace(stdout="NVIDIA H200, 580.1, 143771 MiB, 1980 MHz\n")
    monkeypatch.setattr(gpu_environment.subprocess, "run", lambda *args, **kwargs: answer)
    assert gpu_environment.query_card()["nvidia_smi"]["driver_version"] == "580.1"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is available")
def test_without_a_gpu_the_command_names_the_reason(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench.gpu"])
    with pytest.raises(SystemExit) as stopped:
        gpu_command.main()
    assert stopped.value.code == 2 and "bench.gpu: expected a CUDA device, torch finds none" in capsys.readouterr().err
