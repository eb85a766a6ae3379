"""Runs that stop, are killed or are damaged, and resume; run folders that cannot be resumed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from oekd_fast import load_student
from oekd_fast.common.checked_json import load_checked
from oekd_fast.runs.checkpoint import load_latest_checkpoint
from oekd_fast.runs.device_data import dataset_of
from oekd_fast.runs.interrupt import Interrupted
from oekd_fast.runs.run import train
from oekd_fast.runs.run_folder import RunFolderError

from ..support.small_runs import (
    QUIET,
    assert_same_run,
    at_step,
    command_line,
    metrics_without_times,
    results_without_times,
)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run(config, uninterrupted):
    train(config, QUIET)
    assert_same_run(config.output_dir, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 3, 11])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(
    smallest, uninterrupted_with_baselines, monkeypatch, step
):
    """The steps lie within an epoch, at the end of one, and in a baseline (from step 10 on)."""
    again = replace(smallest, epochs=3, baseline=True)
    with monkeypatch.context() as patch:
        at_step(patch, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted, match="--resume continues") as stopped:
            train(again, QUIET)
        assert stopped.value.signal_number == signal.SIGTERM
    train(replace(again, resume=True), QUIET)
    assert_same_run(uninterrupted_with_baselines, again.output_dir)


@pytest.mark.slow
def test_a_run_with_all_kinds_of_draws_resumes_to_the_same_bits(config, tmp_path, monkeypatch, one_thread):
    """Stopped within the second epoch, whose flips are the opposite of those of the first.

    The images are larger there, and the hardest of each batch are trained on.
    """
    options = {"mixup": 0.4, "cutmix": 1.0, "flip": True, "alternate_flips": True, "micro_batches": 3}
    options |= {"class_weights": "balanced", "patience": 9}
    options |= {"start_size": 0.5, "growth": (0.0, 0.5), "keep_hardest": 0.5, "hardest_between": (0.5, 1.0)}
    config = replace(config, **options, clip_norm=1.0, ema_decay=0.9, epochs=2, executor="sequential")
    straight, stopped = (replace(config, output_dir=tmp_path / name) for name in ("straight", "stopped"))
    train(straight, QUIET)
    with monkeypatch.context() as patch:
        at_step(patch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted, match="^ensemble: stopped after step 4 and saved"):
            train(stopped, QUIET)
    train(replace(stopped, resume=True), QUIET)
    assert_same_run(straight.output_dir, stopped.output_dir)


@pytest.mark.slow
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(config, uninterrupted):
    script = (
        "import os, signal, sys\n"
        "from oekd_fast.training.engine import Engine\n"
        "import oekd_fast.train as t\n"
        "step, done = Engine.step, []\n"
        "def patched(self):\n"
        "    done.append(1)\n"
        "    if len(done) == 8: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self)\n"
        "Engine.step = patched\n"
        "sys.exit(t.main())\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, *command_line(config)], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(metrics_without_times(config.output_dir)) == 2
    train(replace(config, resume=True), QUIET)
    assert_same_run(uninterrupted, config.output_dir)


@pytest.mark.slow
def test_resume_skips_a_damaged_latest_checkpoint(config, uninterrupted, monkeypatch):
    with monkeypatch.context() as patch:
        at_step(patch, 8, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            train(config, QUIET)
    latest = load_latest_checkpoint(config.output_dir / "checkpoints" / "ensemble").path
    content = bytearray(latest.read_bytes())
    content[len(content) // 2] ^= 1
    latest.write_bytes(content)
    with pytest.warns(UserWarning, match=f"skipped a damaged checkpoint, {latest}"):
        train(replace(config, resume=True), QUIET)
    assert_same_run(uninterrupted, config.output_dir)


@pytest.mark.slow
def test_resuming_a_finished_run_changes_nothing(config, uninterrupted):
    shutil.copytree(uninterrupted, config.output_dir)
    before = metrics_without_times(config.output_dir), results_without_times(config.output_dir)
    train(replace(config, resume=True), QUIET)
    assert (metrics_without_times(config.output_dir), results_without_times(config.output_dir)) == before


@pytest.mark.slow
def test_accuracies_with_flips_can_be_added_to_a_finished_run_and_change_no_other(
    smallest, uninterrupted_with_baselines
):
    config = replace(smallest, epochs=3)
    shutil.copytree(uninterrupted_with_baselines, config.output_dir)
    before = results_without_times(config.output_dir)
    train(replace(config, resume=True, baseline=True, test_flips=True), QUIET)
    after, test = results_without_times(config.output_dir), dataset_of(config).test
    for folder, name in (("students", "accuracy_with_flips"), ("baselines", "baseline_accuracy_with_flips")):
        for j, student in enumerate(after["students"]):
            loaded = load_student(config.output_dir / folder / f"student_{j + 1}")
            logits = sum(loaded(loaded.preprocess(images)) for images in (test.images, test.images.flip(3)))
            right = (logits.argmax(dim=1) == test.labels).double().mean().item()
            # One image may be tied up to rounding.
            assert student.pop(name) == pytest.approx(100 * right, abs=100.5 / len(test))
            assert before["students"][j].pop(name) is None
    assert 0 <= after.pop("ensemble_accuracy_with_flips") <= 100
    assert before.pop("ensemble_accuracy_with_flips") is None
    assert after == before


@pytest.mark.slow
def test_baselines_can_be_added_to_a_finished_run(config, uninterrupted):
    shutil.copytree(uninterrupted, config.output_dir)
    summary = train(replace(config, resume=True, baseline=True), QUIET)
    assert all(student["baseline_accuracy"] is not None for student in summary["students"])


def test_resume_without_a_run_starts_one(smallest):
    train(replace(smallest, resume=True), QUIET)
    assert (smallest.output_dir / "summary.json").exists()


def test_a_folder_that_holds_a_run_is_not_overwritten(smallest):
    train(smallest, QUIET)
    before = (smallest.output_dir / "summary.json").read_bytes()
    with pytest.raises(RunFolderError, match=r"output_dir: .*run already holds a run; --resume continues it"):
        train(replace(smallest, seed=1), QUIET)
    assert (smallest.output_dir / "summary.json").read_bytes() == before


def test_a_resumed_config_must_match(smallest):
    train(smallest, QUIET)
    before = (smallest.output_dir / "config.json").read_bytes()
    changed = replace(smallest, resume=True, temperature=3.0, seed=1)
    with pytest.raises(RunFolderError, match="temperature: expected 2.0, got 3.0; seed: expected 0, got 1"):
        train(changed, QUIET)
    assert (smallest.output_dir / "config.json").read_bytes() == before


def test_a_run_without_newer_config_fields_resumes(smallest):
    train(smallest, QUIET)
    file = smallest.output_dir / "config.json"
    fields = load_checked(file.read_text())
    for name in ("train_images", "augmentation", "image_size", "normalisation", "skip_corrupt", "ce_schedule"):
        del fields[name]
    file.write_text(json.dumps(fields))
    train(replace(smallest, resume=True), QUIET)
    file.write_text(json.dumps(fields))
    with pytest.raises(RunFolderError, match="train_images: expected None, got 60"):
        train(replace(smallest, resume=True, train_images=60), QUIET)
    with pytest.raises(RunFolderError, match="ce_schedule: expected 'constant', got 'linear'"):
        train(replace(smallest, resume=True, ce_schedule="linear"), QUIET)


def test_a_checkpoint_of_another_config_raises(smallest):
    train(smallest, QUIET)
    (smallest.output_dir / "config.json").unlink()
    before = (smallest.output_dir / "metrics.jsonl").read_bytes()
    with pytest.raises(RunFolderError, match=r"does not match .*step-0000000003.pt; epochs: expected 1, got 3"):
        train(replace(smallest, epochs=3, resume=True), QUIET)
    assert not (smallest.output_dir / "config.json").exists()
    assert (smallest.output_dir / "metrics.jsonl").read_bytes() == before
