"""Blocks under torch.compile: one compilation for each shape, and the same results."""

import copy
from functools import partial

import pytest
import torch

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.models import get_architecture
from oekd_fast.training import prepare
from oekd_fast.training.compile_blocks import compile_blocks

from ..support.engines import make_batch, make_engine


@pytest.mark.slow
def test_each_shape_of_block_is_compiled_once(one_thread):
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    torch.manual_seed(0)
    ensemble = build_ensemble("resnet32", 1)
    plain = copy.deepcopy(ensemble)
    shapes = compile_blocks(ensemble, get_architecture("resnet32").block_type, backend)
    assert shapes == 5  # of 15 blocks
    assert ensemble.state_dict().keys() == plain.state_dict().keys()
    images = torch.randn(2, 3, 8, 8)
    for _ in range(2):
        logits = [family(images).logits[0] for family in (ensemble, plain)]
        torch.testing.assert_close(*logits)
    assert len(graphs) == shapes
    for family in (ensemble, plain):
        family(images).logits[0].sum().backward()
    for ours, theirs in zip(ensemble.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_a_deep_copy_runs_its_own_blocks(one_thread):
    ensemble = build_ensemble("resnet20", 1)
    compile_blocks(ensemble, get_architecture("resnet20").block_type, "eager")
    twin = copy.deepcopy(ensemble)
    block = twin.branches[0].stages[0][0]
    assert block.forward.__self__ is block


@pytest.mark.slow
def test_an_engine_with_compiled_blocks_trains_and_averages_like_one_without(monkeypatch, one_thread):
    monkeypatch.setattr(prepare, "compile_blocks", partial(compile_blocks, backend="eager"))
    states = []
    for compiled in (False, True):
        config = TrainConfig(num_students=2, warmup_epochs=0, ema_decay=0.9, compile_blocks=compiled)
        engine = make_engine(config)
        for _ in range(2):
            engine.train_step(*make_batch())
        states.append((engine.ensemble.state_dict(), engine.average.ensemble.state_dict()))
    for plain, ours in zip(*states, strict=True):
        for name, value in plain.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5)
