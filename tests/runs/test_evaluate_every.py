"""Runs that evaluate every n-th epoch: what they record, select and show, and that they resume to the same bits."""

import io
import os
import signal
from dataclasses import replace

import pytest
from rich.console import Console

from oekd_fast.reporting.finished_runs import read_run
from oekd_fast.runs.checkpoint import load_latest_checkpoint
from oekd_fast.runs.interrupt import Interrupted
from oekd_fast.runs.phase_state import PhaseState, mean_accuracy
from oekd_fast.runs.run import train
from oekd_fast.runs.run_folder import RunFolderError

from ..support.small_runs import (
    QUIET,
    assert_equal_except_times,
    assert_same_run,
    at_step,
    metrics_without_times,
)

EVALUATED = [2, 4, 5]


@pytest.fixture
def rare(smallest):
    """A config of three phases of five epochs, of which the second, the fourth and the last one are evaluated."""
    return replace(smallest, epochs=5, evaluate_every=2, baseline=True, track_test=True)


def test_evaluations_change_nothing_in_the_training(rare, tmp_path):
    always = replace(rare, evaluate_every=1, output_dir=tmp_path / "always")
    printed = io.StringIO()
    summary = train(replace(rare, progress=True), Console(file=printed, width=80))
    train(always, QUIET)
    lines, of_all = metrics_without_times(rare.run_folder), metrics_without_times(always.run_folder)
    for line, complete in zip(lines, of_all, strict=True):
        evaluated = line["epoch"] in EVALUATED
        assert line == {k: v for k, v in complete.items() if evaluated or k not in ("validation", "test")}
    for phase in summary["phases"]:
        states = [
            load_latest_checkpoint(run.run_folder / "checkpoints" / phase).state["engine"] for run in (rare, always)
        ]
        assert_equal_except_times(*states, where=phase)
    shown = [line for line in printed.getvalue().splitlines() if "loss" in line]
    assert [" val " in line for line in shown] == [line["epoch"] in EVALUATED for line in lines]

    family = [line for line in lines if line["phase"] == "ensemble" and "validation" in line]
    means = [mean_accuracy(line["validation"]["accuracy"]) for line in family]
    assert summary["selected_epoch"] in EVALUATED
    assert means[EVALUATED.index(summary["selected_epoch"])] == max(means)
    assert summary["best_test_ensemble_accuracy"] == round(max(line["test"]["ensemble_accuracy"] for line in family), 4)
    assert [line["epoch"] for line in read_run(rare.run_folder).histories["baseline_2"]] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("step", [3, 11, 12], ids="step {}".format)
def test_a_resumed_run_evaluates_the_same_epochs(rare, tmp_path, monkeypatch, step):
    """The steps lie at the end of an epoch without an evaluation, and within and at the end of an evaluated one."""
    rare = replace(rare, baseline=False)
    stopped = replace(rare, output_dir=tmp_path / "stopped")
    train(rare, QUIET)
    with monkeypatch.context() as patch:
        at_step(patch, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            train(stopped, QUIET)
    train(replace(stopped, resume=True), QUIET)
    assert_same_run(rare.run_folder, stopped.run_folder)


def test_another_interval_is_another_run(rare):
    train(replace(rare, epochs=1, baseline=False), QUIET)
    with pytest.raises(RunFolderError, match="evaluate_every: expected 2, got 1"):
        train(replace(rare, epochs=1, baseline=False, evaluate_every=1, resume=True), QUIET)


def test_patience_counts_epochs_and_ends_a_phase_at_an_evaluation(rare):
    """Weights hardly change, and the running statistics of the norms soon change no prediction."""
    early = replace(rare, learning_rate=1e-9, epochs=40, patience=3, baseline=False)
    summary = train(early, QUIET)
    history = metrics_without_times(early.run_folder)
    stale = [PhaseState(history=history[:end]).stale_epochs for end in range(1, len(history) + 1)]
    assert summary["phases"]["ensemble"]["stopped_early"] and len(history) % 2 == 0
    assert stale[-1] == 4 and max(stale[:-1]) == 2 and "validation" in history[-1]
