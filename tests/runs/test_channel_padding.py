"""Runs whose channels are padded: what they say and write, and resuming with another storage of the channels."""

import io
import os
import signal
from dataclasses import replace

import pytest
from rich.console import Console

from oekd_fast import load_student
from oekd_fast.runs.checkpoint import load_latest_checkpoint
from oekd_fast.runs.dry_run import dry_run
from oekd_fast.runs.interrupt import Interrupted
from oekd_fast.runs.run import train

from ..support.small_runs import QUIET, at_step


def test_a_padded_run_resumes_without_padding_to_the_same_files(smallest, tmp_path, monkeypatch):
    config = replace(smallest, num_students=2, epochs=2, ema_decay=0.9, pad_channels="on")
    plain = replace(config, pad_channels="off", output_dir=tmp_path / "plain")
    expected = train(plain, QUIET)
    with monkeypatch.context() as patch:
        at_step(patch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
        output = io.StringIO()
        with pytest.raises(Interrupted):
            train(config, Console(file=output, width=200))
    assert "channels: 2, 4 are stored as multiples of 8 (--pad-channels off stores them as they are)" in (
        output.getvalue().splitlines()
    )
    summary = train(replace(config, pad_channels="off", resume=True), QUIET)
    for ours, theirs in zip(summary["students"], expected["students"], strict=True):
        same = ("parameters", "relative_size", "flops", "file_bytes")
        assert [ours[name] for name in same] == [theirs[name] for name in same]
    for folder in (config.output_dir, plain.output_dir):
        student = load_student(folder / "students" / "student_2.safetensors")
        assert student.base[0].weight.shape == (2, 3, 3, 3) and student.branch.classifier.in_features == 2
    states = [load_latest_checkpoint(f.output_dir / "checkpoints" / "ensemble").state for f in (config, plain)]
    shapes = [{name: tensor.shape for name, tensor in state["engine"]["model"].items()} for state in states]
    assert shapes[0] == shapes[1]


def test_the_plan_of_a_padded_run_has_the_counts_of_the_network(smallest):
    config = replace(smallest, num_students=2)
    plans = [dry_run(replace(config, pad_channels=name), seconds=0.0) for name in ("on", "off")]
    assert plans[0].family == plans[1].family
    assert plans[0].notes == (
        "channels: 2, 4 are stored as multiples of 8 (--pad-channels off stores them as they are)",
        *plans[1].notes,
    )
