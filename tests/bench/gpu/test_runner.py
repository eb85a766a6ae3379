"""The runner: cases which fail, crash or hang, and an unusable GPU, do not end a part."""

import json
import subprocess
import sys

import pytest
import torch

from bench.gpu import device as gpu_device
from bench.gpu import runner as gpu_runner
from bench.gpu import worker as gpu_worker
from bench.gpu.parts import Part
from bench.gpu.record import Record
from bench.gpu.runner import Console, Runner

PART = Part("p", ("m",), 100, 1)
# A worker whose case b fails, c crashes after a result, h hangs after one; with a file "calm", none of them does.
WORKER = """
import json, os, sys, time
folder, skip = sys.argv[1], sys.argv[2:]
lines = open(folder + "/results.jsonl", "a")
calm = os.path.exists(folder + "/calm")
def say(**line):
    lines.write(json.dumps({"part": "p", **line}) + "\\n"); lines.flush()
say(keys=list("abchd"))
for key in "abchd":
    if key in skip:
        continue
    say(begin=key)
    if key == "b" and not calm:
        say(key=key, error="Oh")
        continue
    say(key=key, result={"value": key * 2}, lines=["row " + key])
    if key == "c" and not calm:
        print("dying"); sys.stdout.flush(); lines.write('{"part": "p", "ke'); lines.flush(); os._exit(9)
    if key == "h" and not calm:
        time.sleep(100)
    say(done=key)
"""


@pytest.fixture
def watched(tmp_path):
    """Return the runner, its record, and the time that it sees, which passes when case h hangs."""
    now = [0.0]
    record, console = Record(tmp_path), Console(tmp_path)
    (tmp_path / "worker.py").write_text(WORKER)

    def start(part, seconds, skip, output):
        command = [sys.executable, str(tmp_path / "worker.py"), str(tmp_path), *skip]
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)

    def clock():
        state = record.part("p")
        if state.current == "h" and "h" in state.results and not (tmp_path / "calm").exists():
            now[0] += 20.0
        return now[0]

    return Runner(record, console, start, clock), record


def test_cases_which_fail_crash_or_hang_do_not_affect_the_others(watched, tmp_path, capsys):
    runner, record = watched
    runner.run(PART, 1000.0)
    state = record.part("p")
    assert state.ended == "failed" and state.done == ["a", "d"] and state.pending() == []
    assert {key: r["value"] for key, r in state.results.items()} == {"a": "aa", "c": "cc", "h": "hh", "d": "dd"}
    assert state.errors["b"] == "Oh" and "no result for 600 s" in state.errors["h"]
    assert "ended with 9" in state.errors["c"] and "dying" in state.errors["c"]
    assert capsys.readouterr().out.split("\n") == ["row a", "row c", "row h", "row d", ""]

    # Again, with the errors mended: completed cases are not measured once more.
    (tmp_path / "calm").touch()
    runner.run(PART, 1000.0)
    assert state.ended == "done" and state.complete and state.errors == {} and state.done == list("adbch")
    assert "aa" not in capsys.readouterr().out
    read_anew = Record(tmp_path)
    read_anew.read()
    assert read_anew.part("p") == state


def test_a_part_ends_with_its_time(watched):
    runner, record = watched
    runner.clock = iter([0.0, 0.0, *[1e6] * 1000]).__next__
    runner.run(PART, 10.0)
    assert record.part("p").ended == "out of time" and not record.part("p").complete


def test_a_worker_that_does_not_start_is_an_error(tmp_path):
    def start(part, seconds, skip, output):
        return subprocess.Popen([sys.executable, "-m", "not_there"], stdout=output, stderr=subprocess.STDOUT)

    record = Record(tmp_path)
    Runner(record, Console(tmp_path), start).run(PART, 1000.0)
    assert "not_there" in record.part("p").errors["start"] and record.part("p").ended == "failed"


def test_the_command_of_a_worker(tmp_path, monkeypatch):
    started = {}
    monkeypatch.setattr(gpu_runner.subprocess, "Popen", lambda command, **options: started.update(options, c=command))
    gpu_runner.start_worker(tmp_path, dry_run=True)(PART, 9.0, ["x y"], 1)
    options = [str(tmp_path), "p", "--seconds", "9.0", "--dry-run", "--skip", "x y"]
    assert started["c"][2:] == ["bench.gpu.worker", *options] and started["env"]["TRITON_INTERPRET"] == "1"
    gpu_runner.start_worker(tmp_path, dry_run=False)(PART, 9.0, [], 1)
    assert "--dry-run" not in started["c"] and started["start_new_session"]


def test_an_unusable_gpu_ends_the_worker(monkeypatch, tmp_path):
    def dead(*arguments):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    cuda = gpu_device.Cuda()
    assert not cuda.lost(ValueError("no")) and not cuda.lost(torch.cuda.OutOfMemoryError("CUDA error: out of memory"))
    monkeypatch.setattr(torch.cuda, "synchronize", dead)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    copy = Part("copies", ("copy",), 1, 1)
    monkeypatch.setattr("bench.gpu.copy.measure", dead)
    assert gpu_worker.run(copy, tmp_path, 100.0, [], dry_run=False) == gpu_runner.LOST
    keys, begun, error = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert keys["keys"] == ["copy 2 GB", "copy 256 MB"] and begun["begin"] == "copy 2 GB"
    assert "illegal" in error["error"]


def test_long_lines_of_a_table_are_wrapped():
    rows = gpu_worker.wrapped("  " + "word " * 30)
    assert len(rows) == 3 and all(len(row) <= 80 for row in rows)
    assert rows[0].startswith("    word") and rows[1].startswith("        word")
    assert gpu_worker.wrapped("a   b") == ["  a   b"]
