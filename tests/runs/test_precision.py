"""Runs with --precision auto: what they choose, say and record."""

import io
import os
import signal
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from oekd_fast.common.checked_json import load_checked
from oekd_fast.runs.interrupt import Interrupted
from oekd_fast.runs.run import train
from oekd_fast.runs.run_folder import RunFolderError

from ..support.small_runs import QUIET, assert_same_run, at_step


def on_processor(patch, bf16):
    features = {"avx512_bf16": bf16, "cpu_name": "AMD EPYC"}
    patch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)


@pytest.mark.parametrize("bf16", [False, True])
def test_the_run_says_and_records_its_precision(bf16, smallest, monkeypatch):
    on_processor(monkeypatch, bf16)
    output = io.StringIO()
    train(replace(smallest, precision="auto"), Console(file=output, width=80))
    lines = [line for line in output.getvalue().splitlines() if line.startswith("precision: ")]
    assert lines == [
        "precision: bf16, since the processor has AVX512-BF16"
        if bf16
        else "precision: fp32, since the processor does not have AVX512-BF16"
    ]
    stored = load_checked((smallest.output_dir / "config.json").read_bytes())
    assert stored["precision"] == ("bf16" if bf16 else "fp32")


def test_auto_gives_the_bits_of_the_precision_that_it_chooses(smallest, tmp_path, monkeypatch, one_thread):
    on_processor(monkeypatch, bf16=True)
    named = replace(smallest, precision="bf16", output_dir=tmp_path / "named")
    train(named, QUIET)
    train(replace(smallest, precision="auto"), QUIET)
    assert_same_run(named.output_dir, smallest.output_dir)


def test_a_stopped_run_in_bf16_resumes_to_the_same_bits(smallest, tmp_path, monkeypatch, one_thread):
    on_processor(monkeypatch, bf16=True)
    stopped = replace(smallest, model="resnet20", precision="auto", epochs=2)
    straight = replace(stopped, output_dir=tmp_path / "straight")
    train(straight, QUIET)
    with monkeypatch.context() as patch:
        at_step(patch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            train(stopped, QUIET)
    train(replace(stopped, resume=True), QUIET)
    assert_same_run(straight.output_dir, stopped.output_dir)


def test_a_run_does_not_resume_in_another_precision(smallest, monkeypatch):
    on_processor(monkeypatch, bf16=True)
    train(replace(smallest, precision="auto"), QUIET)
    resumed = replace(smallest, precision="auto", resume=True)
    train(resumed, QUIET)
    on_processor(monkeypatch, bf16=False)
    with pytest.raises(RunFolderError, match="precision: expected 'bf16', got 'fp32'"):
        train(resumed, QUIET)
    train(replace(resumed, precision="bf16"), QUIET)
