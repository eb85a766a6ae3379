"""Latency at the end of a run: what is stored and shown, and what does not depend on it."""

import io
import os
import shutil
import signal
from dataclasses import replace

import pytest
from rich.console import Console
from safetensors.torch import load_file

from oekd_fast.common.checked_json import load_checked
from oekd_fast.latency.family import FamilyLatency
from oekd_fast.latency.result import Latency, LatencyReport, Setting
from oekd_fast.runs import deployment
from oekd_fast.runs.interrupt import StopRequest
from oekd_fast.runs.run import train
from oekd_fast.runs.run_folder import RunFolder
from oekd_fast.runs.summary import print_summary

from ..support.small_runs import QUIET, assert_same_run

ONE, MANY = Setting("eager", "cpu", 2, 1), Setting("onnx", "cpu", 2, 64)


def report(*medians: float, ensemble: float = 3.0, slow: tuple[int, ...] = ()) -> LatencyReport:
    students = tuple(
        tuple(Latency(setting, median, 2 * median, 30, (1,) if j in slow else ()) for setting in (ONE, MANY))
        for j, median in enumerate(medians, start=1)
    )
    of_ensemble = tuple(Latency(setting, ensemble, 2 * ensemble, 30) for setting in (ONE, MANY))
    return LatencyReport(students, of_ensemble, {"processor": "a processor"}, (3, 8, 8), 1.25, ("a note",))


@pytest.fixture
def measured(monkeypatch):
    """Replace the measurement; the keywords of each call are recorded."""
    calls = []

    def measure(students, flops, gate, **options):
        calls.append({"students": students, "flops": flops, "gate": gate} | options)
        return report(*(2.0, 1.0)[: len(students)])

    monkeypatch.setattr(deployment, "measure_students", measure)
    return calls


def stored(config) -> dict:
    return load_checked((config.run_folder / "summary.json").read_bytes())


def test_the_summary_has_latency_and_sizes(smallest, measured):
    config = replace(smallest, latency="on", objective="one")
    summary = train(config, QUIET)
    assert stored(config) == summary
    assert summary["latency"] == {
        "machine": {"processor": "a processor"}, "image_shape": [3, 8, 8], "seconds": 1.2, "notes": ["a note"],
    }  # fmt: skip
    first, second = summary["students"]
    assert first["latency"][0] == {
        "runtime": "eager", "device": "cpu", "threads": 2, "batch": 1, "median_ms": 2.0, "p95_ms": 4.0, "calls": 30,
        "not_faster_than": [],
    }  # fmt: skip
    assert FamilyLatency.of(summary).students[1][MANY].median_ms == 1.0
    for student in (first, second):
        file = config.run_folder / "students" / f"student_{student['index']}.safetensors"
        assert student["file_bytes"] == file.stat().st_size

    (call,) = measured
    assert [student.metadata.index for student in call["students"]] == [1, 2]
    assert call["flops"] == [first["flops"], second["flops"]] and call["seconds"] == 20.0
    assert not call["gate"].training and call["device"].type == "cpu"
    weights = [load_file(config.run_folder / "students" / f"student_{j}.safetensors") for j in (1, 2)]
    gate = load_file(config.run_folder / "students" / "gate.safetensors")
    branches = [{k: v for k, v in of_student.items() if k.startswith("branch.")} for of_student in weights]
    base = {k: v for k, v in weights[0].items() if k.startswith("base.")}
    parts = [base, *branches, gate]
    assert summary["ensemble"]["file_bytes"] == sum(v.nbytes for part in parts for v in part.values())
    shared = first["parameters"] - sum(v.numel() for k, v in branches[0].items() if is_parameter(k))
    of_gate = sum(v.numel() for k, v in gate.items() if is_parameter(k))
    assert summary["ensemble"]["parameters"] == first["parameters"] + second["parameters"] - shared + of_gate
    assert max(first["flops"], second["flops"]) < summary["ensemble"]["flops"] < first["flops"] + second["flops"]
    assert summary["ensemble"]["latency"][0]["median_ms"] == 3.0


def is_parameter(name: str) -> bool:
    return not name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def test_without_latency_nothing_is_measured(smallest, measured):
    summary = train(smallest, QUIET)
    assert measured == [] and summary["latency"] is None and summary["ensemble"]["latency"] is None
    assert all(student["latency"] is None and student["file_bytes"] > 0 for student in summary["students"])
    assert FamilyLatency.of(summary) is None


def test_one_network_has_no_ensemble_that_could_be_measured(smallest, measured):
    config = replace(smallest, objective="snapshot", schedule="cyclic", snapshots=1, latency="on")
    summary = train(config, QUIET)
    assert summary["ensemble"] is None and len(summary["students"]) == 1
    assert len(measured[0]["students"]) == 1


def test_the_measurement_changes_nothing_else(smallest, tmp_path, monkeypatch):
    monkeypatch.setattr("oekd_fast.latency.measure._TARGET", 0.0)  # as few turns as possible
    monkeypatch.setattr("oekd_fast.latency.measure.export_in_time", lambda *_: 1 / 0)
    measured, plain = (replace(smallest, latency=latency, output_dir=tmp_path / latency) for latency in ("on", "off"))
    summary = train(measured, QUIET)
    assert all(student["latency"] for student in summary["students"]) and summary["ensemble"]["latency"]
    train(plain, QUIET)
    for entry in (summary, summary["ensemble"], *summary["students"]):
        entry["latency"] = None
    RunFolder(replace(measured, resume=True)).write_summary(summary)
    assert_same_run(measured.run_folder, plain.run_folder)


def test_a_run_that_is_stopped_meanwhile_is_complete_and_resumes(smallest, monkeypatch):
    config = replace(smallest, latency="on")

    def interrupted(*arguments, stopping, **options):
        assert not stopping()
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping()
        return report(2.0, 1.0)

    monkeypatch.setattr(deployment, "measure_students", interrupted)
    stop = StopRequest()
    train(config, QUIET, stop)
    assert stop.signal_number == signal.SIGINT and stored(config)["latency"]["notes"] == ["a note"]

    def killed(*arguments, **options):
        raise KeyboardInterrupt  # a second Ctrl-C

    shutil.rmtree(config.run_folder)
    monkeypatch.setattr(deployment, "measure_students", killed)
    with pytest.raises(KeyboardInterrupt):
        train(config, QUIET)
    before = stored(config)
    assert before["latency"] is None and before["students"][0]["file_bytes"] > 0
    monkeypatch.setattr(deployment, "measure_students", lambda *_, **__: report(2.0, 1.0))
    resumed = train(replace(config, resume=True), QUIET)
    assert resumed["latency"] is not None
    assert [s["accuracy"] for s in resumed["students"]] == [s["accuracy"] for s in before["students"]]


def test_a_measurement_that_fails_is_one_line(smallest, monkeypatch):
    def failing(*arguments, **options):
        raise RuntimeError("out of memory\nin two lines")

    monkeypatch.setattr(deployment, "measure_students", failing)
    text = io.StringIO()
    summary = train(replace(smallest, latency="on"), Console(file=text, width=200))
    line = "Latency could not be measured (RuntimeError: out of memory); the other results are complete"
    assert line in text.getvalue().splitlines()
    assert summary["latency"] is None and stored(replace(smallest)) == summary


def shown(summary, width=100) -> list[str]:
    text = io.StringIO()
    print_summary(Console(file=text, width=width), summary)
    return text.getvalue().splitlines()


def test_the_final_table_shows_and_marks_the_latency(smallest, measured):
    summary = train(replace(smallest, latency="on"), QUIET)
    summary |= deployment.latency_fields(summary, report(1.25, 1.5, ensemble=123.4, slow=(2,)))
    lines = shown(summary)
    assert "ms" in lines[1].split()
    assert "  1.25  " in lines[3] and " *1.50  " in lines[4]
    assert lines[-2:] == ["ms: median latency of one image (eager, 2 threads); ensemble 123 ms",
                          "* Student 2 is not measurably faster than student 1"]  # fmt: skip
    assert max(map(len, shown(summary, 60))) <= 80
