"""The command of bench.gpu: plan, order, time limits, signals, and runs that continue another."""

import json
import os
import signal
import sys

import pytest

from bench.gpu import command
from bench.gpu import environment as gpu_environment
from bench.gpu.parts import PARTS, Part, limit, named, planned
from bench.gpu.record import Record

from .conftest import start_here

A, B, C = Part("a", (), 10, 1), Part("b", (), 20, 1), Part("c", (), 30, 2)
ENVIRONMENT = Part("environment", ("environment",), 1, 1)


def test_a_short_run_is_planned_from_the_first_parts():
    first = [part for part in PARTS if part.level == 1]
    assert sum(part.seconds for part in first) == 300 and planned(PARTS, 300) == first
    assert planned((A, B, C), 45) == [A, B] and planned((B, A), 12) == [A]
    assert len({part.name for part in PARTS}) == len(PARTS) and list(PARTS) == sorted(PARTS, key=lambda p: p.level)
    with pytest.raises(ValueError, match="part: expected one of environment, compile, .*, got 'x'"):
        named("x")


def test_a_part_gets_the_time_that_earlier_parts_left():
    assert limit(A, [A, B], left=30) == 10  # as planned
    assert limit(A, [B], left=35) == 15  # 5 s were left
    assert limit(A, [B], left=100) == 20  # at most twice its seconds
    assert limit(A, [B], left=12) == 10  # the next part gets less
    assert limit(A, [], left=7) == 7 and limit(A, [], left=4) is None


class Worker:
    """Starts workers that measure nothing and write results of part by part; `fails` do so at first."""

    def __init__(self, folder, fails=()):
        self.record, self.fails, self.started = Record(folder), list(fails), []
        self.now, self.card = 0.0, "A card"

    def __call__(self, part, seconds, skip, output):
        self.started.append((part.name, seconds))
        self.now += part.seconds
        say = self.record.append
        say(part=part.name, keys=["machine"])
        say(part=part.name, begin="machine")
        if part.name in self.fails:
            self.fails.remove(part.name)
            say(part=part.name, key="machine", error="Oh\nno")
        else:
            say(part=part.name, key="machine", result={"gpu": self.card}, lines=[])
            say(part=part.name, done="machine")
        return type("Done", (), {"pid": None, "returncode": 0, "poll": lambda self: 0})()

    def clock(self):
        return self.now


PARTS_OF_FOUR = (ENVIRONMENT, A, B, C)


def test_failed_parts_run_again_before_the_next_level(tmp_path, capsys):
    worker = Worker(tmp_path, fails=["a"])
    status = command.run(tmp_path, 600, PARTS_OF_FOUR, start=worker, clock=worker.clock)
    assert [name for name, _ in worker.started] == ["environment", "a", "b", "a", "c"] and status == 0
    printed = capsys.readouterr().out
    assert "  FAILED machine: Oh" in printed and "-- c (at most 60 of 559 s)" in printed


def test_what_is_missing_is_measured_by_the_next_run(tmp_path, capsys):
    worker = Worker(tmp_path, fails=["b", "b"])
    assert command.run(tmp_path, 45, PARTS_OF_FOUR, start=worker, clock=worker.clock) == 1
    printed = capsys.readouterr().out
    assert "-- b: not run, 14 s" not in printed and "-- c: not run" in printed and "b, machine: failed: Oh" in printed
    first = len(worker.started)
    assert command.run(tmp_path, 600, PARTS_OF_FOUR, start=worker, clock=worker.clock) == 0
    assert [name for name, _ in worker.started[first:]] == ["environment", "b", "c"]
    assert json.loads((tmp_path / "report.json").read_text())["errors"] == {}


def test_results_of_different_kinds_do_not_share_a_folder(tmp_path, capsys):
    worker = Worker(tmp_path)
    assert command.run(tmp_path, 600, [ENVIRONMENT, A], start=worker, clock=worker.clock) == 0
    with pytest.raises(ValueError, match="--out: expected a folder of its own .* holds results of a measured run"):
        command.run(tmp_path, 600, [ENVIRONMENT], dry_run=True, start=worker, clock=worker.clock)
    worker.card = "Another"
    with pytest.raises(ValueError, match="--out: expected results of Another alone, .* holds results of A card"):
        command.run(tmp_path, 600, [ENVIRONMENT], start=worker, clock=worker.clock)


def test_without_the_environment_nothing_else_runs(tmp_path, capsys):
    worker = Worker(tmp_path, fails=["environment"])
    assert command.run(tmp_path, 600, [ENVIRONMENT, A], start=worker, clock=worker.clock) == 1
    assert [name for name, _ in worker.started] == ["environment"]
    assert "stopped by the part environment, which all others need" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
def test_a_signal_ends_the_run_with_its_report(tmp_path, capsys):
    class Interrupted(Worker):
        def __call__(self, part, *arguments):
            if part is B:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__call__(part, *arguments)

    worker = Interrupted(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    assert command.run(tmp_path, 600, PARTS_OF_FOUR, start=worker, clock=worker.clock) == 1
    assert "stopped by SIGTERM" in capsys.readouterr().out and signal.getsignal(signal.SIGTERM) == before
    assert json.loads((tmp_path / "report.json").read_text())["parts"].keys() == {"environment", "a"}


def test_lines_cut_by_a_crash_are_left_out(tmp_path):
    record = Record(tmp_path)
    record.append(part="a", keys=["k"])
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"part": "a", "key')
    record.close_last_line()
    record.append(part="a", begin="k")
    assert record.read() == [{"part": "a", "keys": ["k"]}, {"part": "a", "begin": "k"}] and record.read() == []
    assert record.part("a").current == "k" and record.part("a").pending() == ["k"]


def test_the_environment_needs_a_gpu(tmp_path, rehearsal, monkeypatch):
    (result,) = gpu_environment.measure("machine", rehearsal)
    assert "placeholder" in result["gpu"] and "compiled executor" in list(gpu_environment.lines("machine", result))[-1]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    status = start_here(tmp_path, dry_run=False)(
        ENVIRONMENT, 10.0, [], os.open(tmp_path / "log", os.O_CREAT | os.O_RDWR)
    )
    record = Record(tmp_path)
    record.read()
    assert status.returncode == 0 and "expected a CUDA device" in record.part("environment").errors["machine"]


def test_what_nvidia_smi_says(monkeypatch):
    answer = type("Done", (), {"stdout": "NVIDIA H200, 580.1, 143771 MiB, 1980 MHz\n"})
    monkeypatch.setattr(gpu_environment.subprocess, "run", lambda *args, **kwargs: answer)
    assert gpu_environment.query_card()["nvidia_smi"]["driver_version"] == "580.1"


def test_the_command_line(monkeypatch, tmp_path, capsys):
    seen = {}
    monkeypatch.setattr(command, "run", lambda *arguments: seen.update(a=arguments) or 0)
    argv = ["bench.gpu", "--out", str(tmp_path), "--minutes", "2", "--parts", "loss", "smoke"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit, match="0"):
        command.main()
    assert seen["a"][:2] == (tmp_path, 120.0) and [p.name for p in seen["a"][2]] == ["environment", "smoke", "loss"]
    monkeypatch.setattr(sys, "argv", [*argv, "x"])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert "--parts" in capsys.readouterr().err
