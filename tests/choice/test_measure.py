"""Measuring a finished run, with real students."""

import shutil
import sys
from dataclasses import replace

import pytest
import torch

from oekd_fast import pick_student
from oekd_fast.choice import measure
from oekd_fast.family.saved import GATE_FILE
from oekd_fast.latency.onnx import TooSlowError
from oekd_fast.pick import main
from oekd_fast.runs.run import train

from ..support.forked_runs import smallest_config, smallest_runs
from ..support.reports import change_lines
from ..support.small_runs import QUIET


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a gate and without latency."""
    root = tmp_path_factory.mktemp("run")
    with smallest_runs():
        config = smallest_config(root / "data")
        train(replace(config, objective="one", baseline=False, epochs=1, output_dir=root / "run"), QUIET)
        yield root / "run"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Take as few turns as possible, and export nothing."""

    def export_in_time(*_):
        raise TooSlowError("exporting takes too long")

    monkeypatch.setattr("oekd_fast.latency.measure._TARGET", 0.0)
    monkeypatch.setattr("oekd_fast.latency.measure.export_in_time", export_in_time)


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_without_latency_is_measured_and_stays_as_it_was(run):
    before = content(run)
    choice = pick_student(run, max_ms=1e9, measure=True, runtime="eager")
    assert content(run) == before
    assert choice.setting.runtime == "eager" and choice.setting.batch == 1
    one, two, ensemble = choice.candidates
    assert all(candidate.median_ms > 0 for candidate in choice.candidates)
    assert ensemble.parameters > one.parameters > two.parameters and ensemble.file_bytes > 0
    # The run has measured the same sizes.
    stored = pick_student(run, max_parameters="1M").candidates
    assert [(c.parameters, c.file_bytes) for c in stored] == [(c.parameters, c.file_bytes) for c in choice.candidates]


def test_without_its_gate_the_ensemble_cannot_be_used(run):
    gate = run / "students" / GATE_FILE
    saved = gate.read_bytes()
    gate.unlink()
    try:
        choice = pick_student(run, max_ms=1e9, measure=True)
    finally:
        gate.write_bytes(saved)
    assert [candidate.name for candidate in choice.candidates] == ["student 1", "student 2"]


def test_if_there_is_no_time_the_limit_is_refused(run, monkeypatch):
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    with pytest.raises(ValueError, match="^max_ms: expected a run with latency, got .*, where none was measured$"):
        pick_student(run, max_ms=5, measure=True)


@pytest.mark.slow
@pytest.mark.parametrize(("best", "outputs"), [("student 1", 1), ("ensemble", 3)])
def test_the_choice_is_exported(run, tmp_path, monkeypatch, capsys, best, outputs):
    folder, file = shutil.copytree(run, tmp_path / "copy"), tmp_path / "x.pt2"
    accuracies = {"accuracy": [50.0, 1.0], "ensemble_accuracy": 100.0 if best == "ensemble" else 1.0}
    change_lines(folder / "metrics.jsonl", lambda line: line["validation"].update(accuracies))
    monkeypatch.setattr(sys, "argv", ["pick", str(folder), "--max-parameters", "1M", "--export", str(file)])
    assert main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith(f"Choice: {best}, ") for line in lines) and lines[-1].startswith(f"Exported: {file}, ")
    found = torch.export.load(file).module()(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    assert len(found) == outputs if isinstance(found, dict) else found.shape == (2, 3)


def test_a_file_of_another_format_is_refused_first(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pick", str(run), "--max-ms", "1", "--measure", "--export", "x.tflite"])
    assert main() == 1
    assert capsys.readouterr().err == "error: export: expected a name that ends in .onnx or .pt2, got 'x.tflite'\n"
