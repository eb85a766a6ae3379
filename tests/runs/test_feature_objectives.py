"""Runs of the objectives with other losses between feature maps."""

import signal
from dataclasses import replace

import pytest

from oekd_fast import register_architecture
from oekd_fast.models import registry
from oekd_fast.runs.interrupt import Interrupted
from oekd_fast.runs.run import train

from ..support.small_runs import QUIET, assert_same_run, at_step, metrics_without_times
from ..support.smooth_network import SMOOTH


@pytest.mark.parametrize("objective", ["fsp", "meal", "lit"])
def test_an_interrupted_run_resumes_to_the_same_bits(objective, config, tmp_path, monkeypatch, one_thread):
    monkeypatch.setattr(registry, "_ARCHITECTURES", dict(registry._ARCHITECTURES))
    register_architecture(SMOOTH)
    config = replace(
        config, model="smooth", objective=objective, num_students=3, epochs=2, executor="sequential", latency="off"
    )
    straight = replace(config, output_dir=tmp_path / "straight")
    summary = train(straight, QUIET)
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Interrupted):
            train(config, QUIET)
    train(replace(config, resume=True), QUIET)
    assert_same_run(straight.run_folder, config.run_folder)
    assert summary["objective"] == objective
    assert all(line["train"]["feature"] > 0 for line in metrics_without_times(config.run_folder))
