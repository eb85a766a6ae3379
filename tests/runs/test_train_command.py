"""``python -m oekd_fast.train`` as a process."""

import os
import signal
import subprocess
import sys

import pytest

from oekd_fast.runs.checkpoint import load_latest_checkpoint
from oekd_fast.train import main


def run_command(*arguments, folder):
    return subprocess.run(
        [sys.executable, "-m", "oekd_fast.train", *map(str, arguments)],
        cwd=folder, capture_output=True, text=True, env={**os.environ, "COLUMNS": "100"},
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_prints_the_table_and_the_run_folder(arrays, tmp_path):
    options = ["--epochs", 1, "--num-students", 2, "--latency", "off", "--output-dir", "out"]
    done = run_command("--dataset", arrays, *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for text in ("student", "parameters", "size %", "baseline %", "accuracy %", "gain %", "Run folder: out"):
        assert text in done.stdout
    assert (tmp_path / "out" / "summary.json").exists()


@pytest.mark.slow
def test_an_error_on_the_command_line_is_one_line(tmp_path):
    failed = run_command("--model", "resnet21", folder=tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: model: 'resnet21' is unknown; did you mean resnet32 or resnet20")
    assert len(failed.stderr.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "cifar1000"], "cifar100"),
        (["--temperature", "-1"], "temperature: expected a finite number > 0, got -1.0"),
    ],
)
def test_each_kind_of_error_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    assert main() == 1
    errors = capsys.readouterr().err
    assert message in errors and len(errors.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_ctrl_c_on_the_command_line_saves_a_checkpoint(arrays, tmp_path):
    command = [sys.executable, "-m", "oekd_fast.train", "--dataset", str(arrays), "--epochs", "1000",
               "--num-students", "2", "--output-dir", "out", "--batch-size", "20"]  # fmt: skip
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "out" / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        assert process.poll() is None, process.stderr.read()
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGINT, errors
    assert "--resume continues" in output and "Traceback" not in errors
    assert load_latest_checkpoint(tmp_path / "out" / "checkpoints" / "ensemble") is not None
