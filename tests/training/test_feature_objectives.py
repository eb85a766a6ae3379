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
WEIGHTS = {"fsp": {"feature_weight": 0.05}, "meal": {"feature_weight": 0.3, "critic_weight": 0.2}}


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


def fsp(family, taught, target):
    """The intermediate loss of the students with the maps `taught`."""
    loss = 0.0
    for i, own in enumerate(taught):
        adapted = [of_block[i](x) for of_block, x in zip(family.adapters, own, strict=True)]
        for g, goal in zip(flow(adapted), flow(target), strict=True):
            loss = loss + 0.05 * (g - goal).pow(2).sum((1, 2)).mean()
    return loss, torch.zeros(())


def meal(family, taught, target):
    """The similarity loss of the students with the maps `taught`, and the adversarial loss."""
    similarity = adversarial = 0.0
    for i, own in enumerate(taught):
        for x, f, adapters, critics in zip(own, target, family.adapters, family.helpers, strict=True):
            s, t = adapters[i](x).mean((2, 3)), f.mean((2, 3))
            p, q = t.softmax(1), s.softmax(1)
            similarity = similarity + (p * (p.log() - q.log())).sum(1).mean()
            d_t, d_s = critics[i](t).sigmoid(), critics[i](s).sigmoid()
            adversarial = adversarial + d_t.log().mean() + (1 - d_s).log().mean()
    return 0.3 * similarity, 0.2 * adversarial


FEATURES = {"fsp": fsp, "meal": meal}


def published_losses(objective, family, teacher, pixels, labels):
    """The published loss of the whole family without the adversarial loss, and that loss, in float64."""
    images = network_input(pixels.double())
    shared = family.base(images)
    logits, maps = zip(*(branch(shared) for branch in family.branches), strict=True)
    loss = sum(F.cross_entropy(z, labels) for z in logits)
    if teacher is None:
        prediction, target, learning = logits[0].detach(), [x.detach() for x in maps[0]], slice(1, None)
    else:
        with torch.no_grad():
            prediction, target = teacher.branch(teacher.base(images))
        learning = slice(None)
    if objective == "meal":
        for z in logits[learning]:
            loss = loss + (prediction.softmax(1) * (prediction.log_softmax(1) - z.log_softmax(1))).sum(1).mean()
    of_maps, adversarial = FEATURES[objective](family, maps[learning], target)
    return loss + of_maps, adversarial


@pytest.mark.parametrize("executor", ["sequential", "parallel"])
@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("objective", FEATURES)
def test_gradients_equal_those_of_the_published_loss(objective, external, executor):
    teacher = make_teacher() if external else None
    engine, (pixels, labels) = engine_of(objective, teacher, executor=executor), make_batch(16)
    twin = copy.deepcopy(engine.ensemble).double().train()
    twin_teacher = None if teacher is None else copy.deepcopy(teacher.network).double().eval()
    loss, adversarial = published_losses(objective, twin, twin_teacher, pixels, labels)
    names, parameters = zip(*twin.named_parameters(), strict=True)
    goals = torch.autograd.grad(loss + adversarial, parameters, retain_graph=True)  # the students minimise both
    critics = list(twin.helpers.parameters())
    if critics:  # and the critics maximise theirs
        goals = (*goals[: -len(critics)], *(-grad for grad in goals[-len(critics) :]))
        assert names[-len(critics)].startswith("helpers.")
    engine.train_step(pixels, labels)
    assert engine.metrics.read().loss == pytest.approx((loss - adversarial).item(), rel=1e-5)
    for (name, ours), goal in zip(engine.ensemble.named_parameters(), goals, strict=True):
        distance = (ours.grad.double() - goal).norm()
        assert distance <= 1e-4 * goal.norm() + 1e-6, name


@pytest.mark.parametrize("objective", FEATURES)
def test_one_graph_has_the_gradients_of_separate_passes(objective):
    teacher = make_teacher()
    engines = [engine_of(objective, teacher, detach_ensemble=detach) for detach in (True, False)]
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
