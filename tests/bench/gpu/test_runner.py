"""The runner: cases which fail, crash or hang, and an unusable GPU, do not end the section."""

import json
from importlib import import_module

import pytest
import torch

from bench.gpu import loss as gpu_loss
from bench.gpu import runner as gpu_runner

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


def test_cases_which_fail_crash_or_hang_do_not_affect_the_others(tmp_path, monkeypatch):
    (tmp_path / "cases.py").write_text(CASES)
    monkeypatch.setattr(gpu_runner, "ROOT", tmp_path)
    seen, now = [], [0.0]

    def update(state):
        seen.append(len(state["results"]))
        if "h" in state["results"]:  # which hangs after its result: let the time pass
            now[0] = 100.0

    state = gpu_runner.run_cases(
        "loss", list("abchd"), 1000, case_seconds=50, update=update, module="cases", clock=lambda: now[0]
    )
    assert state["results"] == {"a": "aa", "c": "cc", "h": "hh", "d": "dd"} and state["not_run"] == []
    assert state["errors"]["b"] == "Oh" and "no line for 50 s" in state["errors"]["h"]
    assert "ended with 9" in state["errors"]["c"] and "dying" in state["errors"]["c"]
    assert seen[-1] == 4 and sorted(seen) == seen


def test_a_process_that_does_not_start_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_runner, "ROOT", tmp_path)
    state = gpu_runner.run_cases("loss", ["a"], 1000, module="not_there")
    assert state["not_run"] == ["a"] and "not_there" in state["errors"]["start"]


def test_an_unusable_gpu_ends_the_process(monkeypatch, tmp_path):
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


@pytest.mark.parametrize("section", gpu_runner.SECTIONS)
def test_every_section_has_cases(section):
    if section == "sweep":
        pytest.importorskip("triton", reason="the plans are of Triton kernels")
    module = import_module(gpu_runner.SECTIONS[section])
    assert module.keys() and set(module.keys(True)) <= set(module.keys()) and callable(module.measure)
