"""Runs that end with an error: divergence, labels out of range, unusable options."""

from dataclasses import replace

import pytest
import torch

from oekd_fast.losses import reference
from oekd_fast.losses.calls import EnsembleKDCall, KDOptions
from oekd_fast.runs.checkpoint import load_latest_checkpoint
from oekd_fast.runs.phase import TrainingDiverged
from oekd_fast.runs.run import train
from oekd_fast.training.engine import Engine

from ..support.small_runs import QUIET, at_step


def test_divergence_names_the_step_and_keeps_the_last_good_checkpoint(config, monkeypatch):
    def poison():
        with torch.no_grad():
            engines[0].ensemble.base[0].weight.fill_(float("nan"))

    engines = []
    initialise = Engine.__init__
    monkeypatch.setattr(Engine, "__init__", lambda self, *a, **k: (engines.append(self), initialise(self, *a, **k))[1])
    at_step(monkeypatch, 5, poison)
    with pytest.raises(TrainingDiverged, match=r"ensemble: the loss is not finite since step 5 \(epoch 2\)"):
        train(config, QUIET)
    kept = load_latest_checkpoint(config.output_dir / "checkpoints" / "ensemble")
    assert kept.step == 3
    assert all(torch.isfinite(value).all() for value in kept.state["engine"]["model"].values())


@pytest.mark.parametrize("name", ["base.0.weight", "branches.1.stages.1.0.norm2.running_var"])
def test_weights_that_the_last_step_ruins_are_not_saved(config, monkeypatch, name):
    step = Engine.step

    def ruining(engine):  # no later step shows it in its loss
        step(engine)
        done.append(engine)
        if len(done) == 9:
            engine.ensemble.state_dict()[name][0] = float("inf")

    done = []
    monkeypatch.setattr(Engine, "step", ruining)
    with pytest.raises(TrainingDiverged, match=f"ensemble: the weights {name} are not finite since step 9 .epoch 3."):
        train(config, QUIET)
    assert load_latest_checkpoint(config.output_dir / "checkpoints" / "ensemble").step == 6
    assert not (config.output_dir / "students").exists() and not (config.output_dir / "summary.json").exists()


def test_a_label_out_of_range_is_reported_where_the_metrics_are_read(config, monkeypatch):
    # A GPU does not check labels; the cross-entropies of the batch become NaN.
    def poison():
        logits = [torch.zeros(2, 10) for _ in range(config.num_students)]
        output = reference.ensemble_kd(EnsembleKDCall.of(logits, torch.tensor([0, 99]), KDOptions()))
        engines[0].metrics.update(output, 2, None, output.loss)

    engines = []
    initialise = Engine.__init__
    monkeypatch.setattr(Engine, "__init__", lambda self, *a, **k: (engines.append(self), initialise(self, *a, **k))[1])
    at_step(monkeypatch, 5, poison)
    with pytest.raises(TrainingDiverged, match="Labels are out of range: expected classes 0 to 2"):
        train(config, QUIET)


def test_a_batch_size_of_one_raises(config):
    with pytest.raises(ValueError, match="batch_size: training needs batches of at least 2 images, got 1"):
        train(replace(config, batch_size=1), QUIET)
    assert not config.output_dir.exists()


def test_an_unknown_device_raises(config):
    with pytest.raises(ValueError, match="device: 'cuda:99' cannot be used here"):
        train(replace(config, device="cuda:99"), QUIET)
