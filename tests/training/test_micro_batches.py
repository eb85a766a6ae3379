"""Steps whose batch is computed in parts against the step on the whole batch."""

import math

import pytest
import torch
from torch import nn

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import DataError
from oekd_fast.distributed.world import ALONE, World
from oekd_fast.runs.phase import _check_batch_size

from ..support import rank_steps
from ..support.engines import make_batch, make_engine
from ..support.smooth_network import PLAIN

# In float64, and without norms, whose statistics are those of each part.
STEPS, EXACT = 3, 1e-13
OPTIONS = {
    "oekd": {},
    "kd, fp16's scaler": {"objective": "kd", "teacher": "student_1", "precision": "fp16"},
    "codistillation of copies": {"objective": "codistillation", "codistillation_delay": 2},
    "dml, clipped, averaged": {"objective": "dml", "clip_norm": 0.5, "ema_decay": 0.9},
    "class weights": {"class_weights": "balanced"},
    "class weights, mixed": {"class_weights": "balanced", "mixup": 0.5, "label_smoothing": 0.1},
    "fitnets": {"objective": "fitnets", "teacher": "student_1"},
    "fsp": {"objective": "fsp", "feature_weight": 0.05},
    "meal": {"objective": "meal"},
    "lit": {"objective": "lit"},
    "one": {"objective": "one"},
    "attached": {"detach_ensemble": False},
}


def train_without_norms(fields):
    engine = rank_steps.engine_of(ALONE, fields, network=PLAIN)
    if engine.ensemble.gate is not None:
        engine.ensemble.gate.norm = nn.Identity()
    for _ in range(STEPS):
        engine.train_step(*make_batch(16))
    return rank_steps.state_of(engine)


def check_equal(state, expected):
    weights, metrics = state
    for name, tensor in expected[0].items():
        error = (weights[name] - tensor).norm() / tensor.norm().clamp(min=1e-3)
        assert error <= EXACT, f"{name}: {error:.3g}"
    for name, value in expected[1].items():
        assert metrics[name] == pytest.approx(value, rel=1e-6), name


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_step_in_parts_equals_the_step_on_the_whole_batch(options, one_thread, monkeypatch):
    """16 images in 3 parts: 5, 5 and 6."""
    # The loss is scaled as in fp16, and computed in float64.
    monkeypatch.setattr("oekd_fast.training.numerics._AUTOCAST_DTYPES", dict.fromkeys(("fp32", "bf16", "fp16")))
    whole, parts = (train_without_norms(options | {"micro_batches": count}) for count in (1, 3))
    check_equal(parts, whole)


def test_norms_see_each_part_and_metrics_the_whole_batch(one_thread):
    engine = make_engine(TrainConfig(num_students=2, warmup_epochs=0, micro_batches=4))
    engine.train_step(*make_batch())
    counts = {int(b) for name, b in engine.ensemble.named_buffers() if name.endswith("num_batches_tracked")}
    assert counts == {4}
    assert engine.metrics.read().images == 8
    engine.ensemble.branches[0].requires_grad_(False)
    next(engine.ensemble.branches[0].parameters()).fill_(math.nan)
    engine.train_step(*make_batch())
    assert engine.metrics.read().first_bad_step == 2


def test_a_step_is_skipped_if_one_part_overflows(one_thread):
    engine = make_engine(TrainConfig(num_students=2, warmup_epochs=0, precision="fp16", micro_batches=2))
    before = {name: tensor.clone() for name, tensor in engine.ensemble.named_parameters()}
    engine.scaler.load_state_dict({**engine.scaler.state_dict(), "scale": 2.0**40})
    engine.train_step(*make_batch())
    assert engine.scaler.state_dict()["scale"] == 2.0**39
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.ensemble.named_parameters())


def test_each_part_of_each_rank_needs_two_images():
    config = TrainConfig(micro_batches=4)
    _check_batch_size(24, World(0, 3), config)
    with pytest.raises(DataError, match="^batch_size: .* at least 24 images on 3 ranks in 4 micro-batches, got 23$"):
        _check_batch_size(23, World(0, 3), config)
