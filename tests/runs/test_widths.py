"""Whole runs with explicit shares of the channels and with channels in multiples."""

import io
import json
import os
import signal
from dataclasses import replace

import pytest
from rich.console import Console
from torch import nn

from oekd_fast import FunctionalArchitecture, load_student, register_architecture
from oekd_fast.common.checked_json import load_checked
from oekd_fast.report import ReportConfig, report
from oekd_fast.runs.interrupt import Interrupted
from oekd_fast.runs.run import train
from oekd_fast.runs.run_folder import RunFolderError

from ..support.forked_runs import SMALLEST
from ..support.small_runs import QUIET, assert_same_run, at_step

SHARES = (1, 0.5, 0.25)


@pytest.fixture
def wide(smallest):
    """A config of three students with their own shares and a divisor."""
    return replace(smallest, widths=SHARES, num_students=3, width_divisor=2, epochs=2, baseline=True)


def test_students_and_baselines_have_the_shares(wide):
    summary = train(wide, QUIET)
    stored = load_checked((wide.output_dir / "config.json").read_bytes())
    assert (stored["widths"], stored["width_divisor"], stored["num_students"]) == ([1, 0.5, 0.25], 2, 3)
    for folder in ("students", "baselines"):
        students = [load_student(wide.output_dir / folder / f"student_{j}") for j in (1, 2, 3)]
        assert [student.metadata.widths for student in students] == [(4,), (2,), (1,)]
        assert all(student.metadata.shares == SHARES for student in students)
    assert [s["parameters"] for s in summary["students"]] == [student.metadata.parameters for student in students]
    page = report(ReportConfig((wide.output_dir,)), QUIET).read_text()
    assert "width_divisor" in page and "[1.0, 0.5, 0.25]" in page


def test_a_stopped_run_resumes_to_the_same_bits(wide, tmp_path, monkeypatch, one_thread):
    straight = replace(wide, output_dir=tmp_path / "straight")
    train(straight, QUIET)
    with monkeypatch.context() as patch:
        at_step(patch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            train(wide, QUIET)
    for other, message in (
        ({"widths": (1, 0.5, 0.3)}, r"widths: expected \[1.0, 0.5, 0.25\], got \[1.0, 0.5, 0.3\]"),
        ({"width_divisor": None}, "width_divisor: expected 2, got None"),
    ):
        with pytest.raises(RunFolderError, match=message):
            train(replace(wide, resume=True, **other), QUIET)
    train(replace(wide, resume=True), QUIET)
    assert_same_run(straight.output_dir, wide.output_dir)


def test_a_run_without_widths_writes_students_of_format_1(smallest):
    train(smallest, QUIET)
    document = json.loads((smallest.output_dir / "students" / "student_2.json").read_text())
    assert document["format_version"] == 1


def test_students_that_rounding_made_equal_are_noted(smallest):
    wide = FunctionalArchitecture("wide", SMALLEST.base, lambda width: [nn.Conv2d(2, width(24), 1)], nn.Linear)
    register_architecture(wide)
    lines = io.StringIO()
    config = replace(smallest, model="wide", widths=(1, 0.8, 0.75, 0.4), num_students=4, width_divisor=8)
    train(config, Console(file=lines, width=200))
    notes = [line for line in lines.getvalue().splitlines() if "same channels" in line]
    assert notes == [f"Students {j} and {j + 1} have the same channels with width_divisor 8" for j in (1, 2)]


def test_a_divisor_above_every_width_ends_the_run_before_the_data_is_loaded(smallest):
    with pytest.raises(ValueError, match="^width_divisor: expected at most 4, the largest number of channels of small"):
        train(replace(smallest, dataset="no/such/folder", width_divisor=9), QUIET)
    assert not smallest.output_dir.exists()
