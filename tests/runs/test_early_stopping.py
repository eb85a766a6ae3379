"""Runs that end early, because the validation accuracy no longer rises."""

import os
import signal
from dataclasses import replace

import pytest

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.reporting.finished_runs import read_run
from oekd_fast.reporting.run_files import ReportError
from oekd_fast.runs.interrupt import Interrupted
from oekd_fast.runs.phase_state import PhaseState
from oekd_fast.runs.run import train

from ..support.small_runs import QUIET, assert_same_run, at_step, metrics_without_times


@pytest.mark.slow
def test_a_run_ends_early_and_resumes_to_the_same_bits(config, tmp_path, monkeypatch, one_thread):
    """Weights hardly change, and the running statistics of the norms soon change no prediction."""
    early = replace(config, learning_rate=1e-9, epochs=9, patience=1, checkpoint_every=5, baseline=True)
    straight, stopped = (replace(early, output_dir=tmp_path / name) for name in ("straight", "stopped"))
    summary = train(straight, QUIET)
    lines = metrics_without_times(straight.output_dir)
    for name, phase in summary["phases"].items():
        history = [line for line in lines if line["phase"] == name]
        stale = [PhaseState(history=history[:end]).stale_epochs for end in range(1, len(history) + 1)]
        assert phase["trained_epochs"] == len(history) < 9 and phase["stopped_early"]
        assert stale == [0] * (len(history) - 1) + [1]
    trained = summary["trained_epochs"]
    assert (summary["epochs"], trained) == (9, summary["phases"]["ensemble"]["trained_epochs"])

    with monkeypatch.context() as patch:
        at_step(patch, 3 * trained, lambda: os.kill(os.getpid(), signal.SIGTERM))  # the last step
        with pytest.raises(Interrupted, match="^ensemble: finished, stopped before the next"):
            train(stopped, QUIET)
    with monkeypatch.context() as patch:
        at_step(patch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted, match="^baseline_1: stopped after step 5 and saved"):
            train(replace(stopped, resume=True), QUIET)
    train(replace(stopped, resume=True), QUIET)
    assert_same_run(straight.output_dir, stopped.output_dir)

    run = read_run(straight.output_dir)
    assert len(run.histories["ensemble"]) == trained
    (straight.output_dir / "metrics.jsonl").write_text("")
    with pytest.raises(ReportError, match="expected 1 to 9 lines of the phase 'ensemble', got 0"):
        read_run(straight.output_dir)


@pytest.mark.slow
def test_a_run_whose_accuracy_rises_uses_all_epochs(config, one_thread):
    summary = train(replace(config, patience=3), QUIET)
    assert summary["trained_epochs"] == 3 and not summary["phases"]["ensemble"]["stopped_early"]


def test_snapshots_need_all_epochs():
    with pytest.raises(ValueError, match="^patience: expected none with objective='snapshot', .* got 2$"):
        TrainConfig(objective="snapshot", schedule="cyclic", patience=2)
