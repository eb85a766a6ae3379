"""Objectives with other losses between feature maps: the engine's gradients against the published losses, resuming."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.models import FunctionalArchitecture, get_architecture
from oekd_fast.training import backward
from oekd_fast.training.comparisons import comparison_of

from ..support.engines import make_batch, make_engine, make_teacher, network_input
from ..support.smooth_network import SMOOTH

S = 3
WEIGHTS = {"fsp": {"feature_weight": 0.05}, "meal": {"feature_weight": 0.3, "critic_weight": 0.2}, "lit": {}}


def engine_of(objective, teacher=None, model=SMOOTH, **fields):
    fields = WEIGHTS[objective] | fields | {"teacher": None if teacher is None else "given"}
    config = TrainConfig(num_students=S, warmup_epochs=0, objective=objective, **fields)
    return make_engine(config, architecture=model, teacher=teacher)


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


def lit(family, taught, target):
    """The intermediate loss of blocks that are fed with the teacher's maps, for students with the own maps `taught`."""
    loss, branches = 0.0, family.branches[len(family.branches) - len(taught) :]
    for i, (branch, own) in enumerate(zip(branches, taught, strict=True)):
        for b, stage in enumerate(branch.stages):
            x = own[0] if b == 0 else stage(family.helpers[b - 1][i](target[b - 1]))
            loss = loss + (family.adapters[b][i](x) - target[b]).pow(2).mean()
    return 0.25 * loss, torch.zeros(())


FEATURES = {"fsp": fsp, "meal": meal, "lit": lit}
CE = {"fsp": 1.0, "meal": 1.0, "lit": 0.75 * 0.95}
KD = {"fsp": (0.0, 1.0), "meal": (1.0, 1.0), "lit": (0.75 * 0.05, 6.0)}  # weight and temperature


def published_losses(objective, family, teacher, pixels, labels):
    """The published loss of the whole family without the adversarial loss, and that loss, in float64."""
    images = network_input(pixels.double())
    shared = family.base(images)
    logits, maps = zip(*(branch(shared) for branch in family.branches), strict=True)
    loss = CE[objective] * sum(F.cross_entropy(z, labels) for z in logits)
    if teacher is None:
        prediction, target, learning = logits[0].detach(), [x.detach() for x in maps[0]], slice(1, None)
    else:
        with torch.no_grad():
            prediction, target = teacher.branch(teacher.base(images))
        learning = slice(None)
    weight, t = KD[objective]
    for z in logits[learning]:
        gap = (prediction / t).log_softmax(1) - (z / t).log_softmax(1)
        loss = loss + weight * t * t * ((prediction / t).softmax(1) * gap).sum(1).mean()
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
    critics = list(twin.helpers.parameters()) if objective == "meal" else []
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
def test_the_passes_of_streams_have_the_same_gradients(objective, monkeypatch):
    """The CPU stands in for CUDA, on which one call computes the intermediate loss of all students."""
    engines = [engine_of(objective, executor="sequential") for _ in range(2)]
    engines[0].train_step(*make_batch(16))
    monkeypatch.setattr(backward, "backward_in_threads", backward._backward_on_streams)
    engines[1].train_step(*make_batch(16))
    expected, found = (dict(engine.ensemble.named_parameters()) for engine in engines)
    for name, parameter in expected.items():
        torch.testing.assert_close(found[name].grad, parameter.grad, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("objective", FEATURES)
def test_the_base_can_learn_without_the_loss_on_features(objective):
    """Bit for bit, and all other modules keep their gradients."""
    weights = {name: 0.0 for name in ("feature_weight", "critic_weight") if name in WEIGHTS[objective]}
    cases = [{}, {"base_gradients": "without_features"}, {"feature_weight": 0.0} | weights]
    engines = [engine_of(objective, **fields) for fields in cases]
    for engine in engines:
        engine.train_step(*make_batch(16))
    whole, apart, logits = (dict(engine.ensemble.named_parameters()) for engine in engines)
    for name, parameter in apart.items():
        expected = logits if name.startswith("base.") else whole
        assert torch.equal(parameter.grad, expected[name].grad), name
    assert not torch.equal(whole["base.0.weight"].grad, logits["base.0.weight"].grad)


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


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("model", [SMOOTH, get_architecture("resnet20")])
def test_inputs_of_the_teacher_do_not_change_running_statistics(model, external):
    teacher = make_teacher() if external else None
    fed = engine_of("lit", teacher, model)
    alone = make_engine(TrainConfig(num_students=S, warmup_epochs=0, objective="independent"), architecture=model)
    for engine in (fed, alone):
        engine.train_step(*make_batch(16))
    found, expected = (dict(engine.ensemble.named_buffers()) for engine in (fed, alone))
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_the_inlets_lead_from_the_teacher_to_the_students():
    sizes = [[(i.in_channels, i.out_channels) for i in of_block] for of_block in engine_of("lit").ensemble.helpers]
    assert sizes == [[(16, 10), (16, 5)], [(32, 21), (32, 10)]]
    assert not engine_of("fsp").ensemble.helpers


def test_blocks_that_do_not_pass_maps_are_refused():
    engine = engine_of("lit")
    engine.ensemble.branches[1] = nn.Identity()
    with pytest.raises(ValueError) as error:
        comparison_of(TrainConfig(objective="lit"), engine.ensemble)
    assert str(error.value) == (
        "objective: expected a network whose blocks receive maps [B, C, H, W] with 'lit', which feeds them with its "
        "teacher's maps, got others in smooth"
    )


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
