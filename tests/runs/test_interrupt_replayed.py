"""Ctrl-C while steps are replayed: the run stops after the current step, saves, and resumes to the same result."""

import signal
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from oekd_fast.runs import phase
from oekd_fast.runs.checkpoint import load_latest_checkpoint
from oekd_fast.runs.interrupt import Interrupted
from oekd_fast.runs.run import train
from oekd_fast.training.engine import Engine

from ..support.op_tape import TapeRecorder

QUIET = Console(quiet=True)


class Interrupting(TapeRecorder):
    """Sends SIGINT during replay number `at`, counted over steps and evaluations."""

    def __init__(self, state, at):
        super().__init__(state)
        self._left = at

    def record(self, call, generators):
        replay = super().record(call, generators)

        def interrupted():
            self._left -= 1
            if self._left == 0:
                signal.raise_signal(signal.SIGINT)
                self.events.append("Ctrl-C")
            replay()

        return interrupted


@pytest.fixture
def recorders(monkeypatch):
    """Return the recorders of all engines, and a list with the replay at which the next one interrupts, if any."""
    made, at = [], []

    def make(*args, **kwargs):
        recorder = Interrupting(lambda: engine.tensors() | engine.evaluator.tensors(), at.pop() if at else 0)
        engine = Engine(*args, **kwargs, recorder=recorder)
        made.append(recorder)
        return engine

    monkeypatch.setattr(phase, "Engine", make)
    return made, at


# An epoch has three steps and one evaluation.
@pytest.mark.slow
@pytest.mark.parametrize(("at", "steps"), [(2, 2), (4, 3), (6, 5)], ids=["a step", "an evaluation", "a later step"])
def test_a_run_of_replayed_steps_stops_after_the_current_one(at, steps, recorders, config, tmp_path, one_thread):
    made, interrupt_at = recorders
    config = replace(config, epochs=2, executor="sequential", output_dir=tmp_path / "stopped")
    interrupt_at[:] = [at]
    with pytest.raises(Interrupted, match="--resume continues"):
        train(config, QUIET)
    (recorder,) = made
    assert recorder.events[-2:] == ["Ctrl-C", "replay"]  # and no further replay
    assert load_latest_checkpoint(tmp_path / "stopped" / "checkpoints" / "ensemble").step == steps

    train(replace(config, resume=True), QUIET)
    train(replace(config, output_dir=tmp_path / "straight"), QUIET)
    ends = [load_latest_checkpoint(tmp_path / run / "checkpoints" / "ensemble") for run in ("stopped", "straight")]
    models = [end.state["engine"]["model"] for end in ends]
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())
