"""Measuring a finished run, with real students."""

from dataclasses import replace

import pytest

from oekd_fast import pick_student
from oekd_fast.choice import measure
from oekd_fast.family.saved import GATE_FILE
from oekd_fast.latency.onnx import TooSlowError
from oekd_fast.runs.run import train

from ..support.forked_runs import smallest_config, smallest_runs
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
