"""Objectives with other losses between feature maps: the engine's gradients against the published losses, resuming."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.models import FunctionalArchitecture

from ..support.engines import make_batch, make_engine, make_teacher, network_input
from ..support.smooth_network import SMOOTH

S = 3
WEIGHTS = {"fsp": {"feature_weight": 0.05}}  # other than the defaults where those hide the loss


def engine_of(objective, teacher=None, **fields):
    fields = WEIGHTS[objective] | fields | {"teacher": None if teacher is None else "given"}
    config = TrainConfig(num_students=S, warmup_epochs=0, objective=objective, **fields)
    return make_engine(config, architecture=SMOOTH, teacher=teacher)


def flow(maps):
    """Matrices [B, M, N] of neighbouring maps; the first is max-pooled by 2."""
    return [
        torch.einsum("bmhw,bnhw->bmn", F.max_pool2d(x, 2), y) / y[0, 0].numel()
        for x, y in zip(maps, maps[1:], strict=False)
    ]


def fsp(family, maps, taught, target):
    """The intermediate loss of fsp for the students with the maps `taught`."""
    loss = 0.0
    for i, own in enumerate(taught):
        adapted = [of_block[i](x) for of_block, x in zip(family.adapters, own, strict=True)]
        for g, goal in zip(flow(adapted), flow(target), strict=True):
            loss = loss + 0.05 * (g - goal).pow(2).sum((1, 2)).mean()
    return loss


FEATURES = {"fsp": fsp}


def published_loss(objective, family, teacher, pixels, labels):
    """The published loss of the whole family, differentiable, in float64."""
    images = network_input(pixels.double())
    shared = family.base(images)
    logits, maps = zip(*(branch(shared) for branch in family.branches), strict=True)
    loss = sum(F.cross_entropy(z, labels) for z in logits)
    if teacher is None:
        target, taught = [x.detach() for x in maps[0]], maps[1:]
    else:
        with torch.no_grad():
            _, target = teacher.branch(teacher.base(images))
        taught = maps
    return loss + FEATURES[objective](family, maps, taught, target)


@pytest.mark.parametrize("executor", ["sequential", "parallel"])
@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("objective", FEATURES)
def test_gradients_equal_those_of_the_published_loss(objective, external, executor):
    teacher = make_teacher() if external else None
    engine, (pixels, labels) = engine_of(objective, teacher, executor=executor), make_batch(16)
    twin = copy.deepcopy(engine.ensemble).double().train()
    twin_teacher = None if teacher is None else copy.deepcopy(teacher.network).double().eval()
    loss = published_loss(objective, twin, twin_teacher, pixels, labels)
    loss.backward()
    engine.train_step(pixels, labels)
    assert engine.metrics.read().loss == pytest.approx(loss.item(), rel=1e-5)
    for (name, ours), theirs in zip(engine.ensemble.named_parameters(), twin.parameters(), strict=True):
        distance = (ours.grad.double() - theirs.grad).norm()
        assert distance <= 1e-4 * theirs.grad.norm() + 1e-6, name


@pytest.mark.parametrize("objective", FEATURES)
def test_one_graph_has_the_gradients_of_separate_passes(objective):
    engines = [engine_of(objective, detach_ensemble=detach) for detach in (True, False)]
    for engine in engines:
        engine.train_step(*make_batch(16))
    split, whole = (dict(engine.ensemble.named_parameters()) for engine in engines)
    for name, parameter in split.items():
        torch.testing.assert_close(whole[name].grad, parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("objective", FEATURES)
def test_training_continues_from_a_saved_state_bit_for_bit(objective):
    fields = {"optimizer": "adam", "ema_decay": 0.9, "base_gradients": "without_features"}
    first, second = engine_of(objective, **fields), engine_of(objective, **fields)
    first.train_step(*make_batch(16))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for engine in (first, second):
        engine.train_step(*make_batch(16))
    expected, found = first.tensors(), second.tensors()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_a_network_of_one_block_has_no_flow():
    one_block = FunctionalArchitecture(
        "one_block", lambda channels: nn.Conv2d(channels, 4, 3), lambda w: [nn.Conv2d(4, w(8), 3)], nn.Linear
    )
    with pytest.raises(ValueError) as error:
        make_engine(TrainConfig(num_students=2, objective="fsp"), architecture=one_block)
    assert str(error.value) == (
        "objective: expected a network of at least two blocks with 'fsp', which compares pairs of neighbouring blocks, "
        "got one block in one_block"
    )
