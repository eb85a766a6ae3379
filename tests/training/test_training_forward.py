"""The forward passes of a step: what is done for all layers together has the bits of what each layer does."""

from contextlib import nullcontext

import pytest
import torch

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.training import numerics

from ..support.engines import make_batch, make_engine


def trained(**fields):
    engine = make_engine(TrainConfig(num_students=2, warmup_epochs=0, **fields))
    engine.train_step(*make_batch(4))
    return engine


@pytest.mark.parametrize("fields", [{}, {"micro_batches": 2, "detach_ensemble": False}], ids=str)
def test_running_statistics_of_a_step(fields, monkeypatch, one_thread):
    together = trained(**fields).ensemble.state_dict()
    monkeypatch.setattr(numerics, "updated_together", nullcontext)
    for name, value in trained(**fields).ensemble.state_dict().items():
        assert torch.equal(together[name], value), name
        if name.endswith("num_batches_tracked"):
            assert value == fields.get("micro_batches", 1), name
