"""The precision of runs by default and with --precision auto: what they choose, say and record."""

import io
import os
import signal
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from oekd_fast.common.checked_json import load_checked
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.runs import set_up
from oekd_fast.runs.interrupt import Interrupted
from oekd_fast.runs.run import train
from oekd_fast.runs.run_folder import RunFolderError
from oekd_fast.training.numerics import default_precision

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


def on_gpu(patch, executor_missing=None):
    """Have the choices of a run on the CPU be those on a GPU that computes in bf16."""
    patch.setattr(set_up, "default_precision", lambda device: default_precision(torch.device("cuda", 0)))
    patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    patch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
    patch.setattr(set_up.native, "why_no_executor", lambda: executor_missing)


def test_bf16_is_the_default_on_cuda_and_said_in_one_line(smallest, monkeypatch):
    assert smallest.precision is None and default_precision(torch.device("cpu")) == "fp32"
    on_gpu(monkeypatch)
    output = io.StringIO()
    train(smallest, Console(file=output, width=200))
    lines = [line for line in output.getvalue().splitlines() if line.startswith("precision: ")]
    assert lines == ["precision: bf16, the default on cpu (--precision fp32 computes in float32)"]
    stored = load_checked((smallest.output_dir / "config.json").read_bytes())
    assert stored["precision"] == "bf16"


def test_a_resumed_run_keeps_the_precision_of_its_folder(smallest, monkeypatch):
    train(replace(smallest, precision="fp32"), QUIET)
    on_gpu(monkeypatch)
    output = io.StringIO()
    train(replace(smallest, resume=True), Console(file=output, width=200))
    assert "precision" not in output.getvalue()
    with pytest.raises(RunFolderError, match="precision: expected 'fp32', got 'bf16'"):
        train(replace(smallest, resume=True, precision="bf16"), QUIET)
    (smallest.output_dir / "config.json").write_text("[]")
    with pytest.raises(RunFolderError, match="is damaged"):
        train(replace(smallest, resume=True), QUIET)


def test_a_run_on_cuda_says_that_the_executor_is_missing(monkeypatch):
    cuda = torch.device("cuda")
    on_gpu(monkeypatch, executor_missing="_executor.so is not installed")
    assert set_up.executor_note(TrainConfig(), cuda) == (
        "executor: students run one after the other on one stream, since the compiled executor is missing "
        "(_executor.so is not installed)"
    )
    for config in (TrainConfig(executor="sequential"), TrainConfig(objective="born_again")):
        assert set_up.executor_note(config, cuda) is None
    assert set_up.executor_note(TrainConfig(), torch.device("cpu")) is None
    on_gpu(monkeypatch)
    assert set_up.executor_note(TrainConfig(), cuda) is None


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
