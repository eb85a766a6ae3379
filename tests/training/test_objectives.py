"""Objectives: the engine's gradients against the published losses."""

import copy

import pytest
import torch
import torch.nn.functional as F

from oekd_fast.config.objectives import OBJECTIVES
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import DeviceBatches, Split
from oekd_fast.training.distillation import label_options

from ..support.engines import CPU, make_batch, make_engine, make_teacher, network_input
from ..support.plain_loss import decoupled
from ..support.smooth_network import SMOOTH

S = 3


def settings(objective, **fields):
    if OBJECTIVES[objective].teacher == "required":
        fields["teacher"] = "given"
    return TrainConfig(num_students=S, objective=objective, warmup_epochs=0, **fields)


def ce(z, y):
    return F.cross_entropy(z, y)


def kl(teacher, student, t):
    return (
        t
        * t
        * F.kl_div(F.log_softmax(student / t, dim=1), F.softmax(teacher.detach() / t, dim=1), reduction="batchmean")
    )


def mse(adapters, maps, targets):
    return sum(F.mse_loss(a(x), f.detach()) for a, x, f in zip(adapters, maps, targets, strict=True))


def written_out(objective, family, twin_teacher, pixels, y):
    """The published loss of the whole family, differentiable, in float64."""
    shared = family.base(network_input(pixels.double()))
    logits, maps = zip(*(branch(shared) for branch in family.branches), strict=True)
    if objective == "independent":
        return sum(ce(z, y) for z in logits)
    if objective in ("dml", "codistillation"):
        pairs = [(i, j) for i in range(S) for j in range(S) if i != j]
        return sum(ce(z, y) for z in logits) + sum(kl(logits[i], logits[j], 1.0) for i, j in pairs) / (S - 1)
    if objective == "one":
        scores = family.gate.norm(family.gate.linear(shared.mean(dim=(2, 3))))
        gate = torch.softmax(torch.relu(scores), dim=1)
        gated = sum(gate[:, j : j + 1] * z for j, z in enumerate(logits))
        return sum(ce(z, y) + kl(gated, z, 3.0) for z in logits) + ce(gated, y)
    if objective == "kd":
        with torch.no_grad():
            theirs, _ = twin_teacher.branch(twin_teacher.base(network_input(pixels.double())))
        return sum(0.1 * ce(z, y) + 0.9 * kl(theirs, z, 4.0) for z in logits)
    assert objective == "fitnets"
    adapters = list(zip(*family.adapters, strict=True))
    if twin_teacher is None:
        hints, taught = maps[0], maps[1:]
    else:
        with torch.no_grad():
            _, hints = twin_teacher.branch(twin_teacher.base(network_input(pixels.double())))
        taught = maps
    return sum(ce(z, y) for z in logits) + sum(mse(a, x, hints) for a, x in zip(adapters, taught, strict=True))


CASES = [
    *((name, False) for name in ("independent", "dml", "codistillation", "one", "fitnets")),
    ("kd", True),
    ("fitnets", True),
]


@pytest.mark.parametrize("executor", ["sequential", "parallel"])
@pytest.mark.parametrize(("objective", "external"), CASES)
def test_gradients_equal_those_of_the_published_loss(objective, external, executor):
    teacher = make_teacher() if external else None
    fields = {"teacher": "given"} if external else {}
    engine, (pixels, labels) = (
        make_engine(settings(objective, executor=executor, **fields), teacher=teacher, architecture=SMOOTH),
        make_batch(16),
    )
    twin = copy.deepcopy(engine.ensemble).double().train()
    twin_teacher = None if teacher is None else copy.deepcopy(teacher.network).double().eval()
    loss = written_out(objective, twin, twin_teacher, pixels, labels)
    loss.backward()
    engine.train_step(pixels, labels)
    assert engine.metrics.read().loss == pytest.approx(loss.item(), rel=1e-5)
    for (name, ours), theirs in zip(engine.ensemble.named_parameters(), twin.parameters(), strict=True):
        if theirs.grad is None:
            assert ours.grad is None or not ours.grad.any(), name
        else:
            # The gradient of a bias before BatchNorm is rounding alone.
            distance = (ours.grad.double() - theirs.grad).norm()
            assert distance <= 1e-4 * theirs.grad.norm() + 1e-6, name


def test_gradients_through_gate_and_target_are_finite_and_differ_from_detached_ones():
    split, whole = (make_engine(settings("one", detach_ensemble=detach)) for detach in (True, False))
    pixels, labels = make_batch(16)
    for engine in (split, whole):
        engine.train_step(pixels, labels)
    assert split.metrics.read().loss == pytest.approx(whole.metrics.read().loss, rel=1e-5)
    grads = [engine.ensemble.gate.linear.weight.grad for engine in (split, whole)]
    assert all(grad.isfinite().all() and grad.any() for grad in grads)
    assert not torch.allclose(*grads)


def test_evaluation_weights_the_students_by_the_gate():
    engine, (pixels, labels) = make_engine(settings("one")), make_batch(16)
    read = engine.evaluator.evaluate(DeviceBatches(Split(pixels, labels), CPU))
    family = engine.ensemble.eval()
    with torch.no_grad():
        images = network_input(pixels)
        shared, output = family.base(images), family(images)
        mixed = sum(w[:, None] * z for w, z in zip(family.gate(shared).unbind(1), output.logits, strict=True))
    assert read.ensemble_ce == pytest.approx(F.cross_entropy(mixed, labels).item(), rel=1e-5)


def test_probabilities_are_the_softmax_in_evaluation_mode():
    engine, (pixels, labels) = make_engine(settings("independent")), make_batch(13)
    found = engine.evaluator.probabilities(DeviceBatches(Split(pixels, labels), CPU))
    with torch.no_grad():
        output = engine.ensemble.eval()(network_input(pixels))
    expected = torch.stack([z.softmax(dim=1) for z in output.logits])
    assert found.shape == (S, 13, 10)
    torch.testing.assert_close(found, expected)


def test_copies_are_updated_every_delay_steps():
    config = settings("codistillation", codistillation_delay=3, learning_rate=0.05)
    engine, (pixels, labels) = make_engine(config, architecture=SMOOTH), make_batch(16)
    seen = []
    for _ in range(5):
        before = {name: tensor.clone() for name, tensor in engine.ensemble.named_parameters()}
        engine.train_step(pixels, labels)
        copies = dict(engine._copies.ensemble.named_parameters())
        seen.append(all(torch.allclose(copies[name], tensor, atol=1e-6) for name, tensor in before.items()))
    assert seen == [True, False, False, True, False]


def test_students_learn_from_the_copies_instead_of_each_other():
    """The copies are exact here, so that they differ from the students in their BatchNorm statistics alone."""
    config = settings("codistillation", codistillation_delay=1)
    engine, (pixels, labels) = make_engine(config, architecture=SMOOTH), make_batch(16)
    twin = copy.deepcopy(engine.ensemble).double()
    shared = twin.train().base(network_input(pixels.double()))
    logits = [branch(shared)[0] for branch in twin.branches]
    still = copy.deepcopy(engine.ensemble).double().eval()
    with torch.no_grad():
        copies = still(network_input(pixels.double())).logits
    loss = sum(ce(z, labels) for z in logits)
    for j, z in enumerate(logits):
        loss = loss + sum(kl(copies[i], z, 1.0) for i in range(S) if i != j) / (S - 1)
    loss.backward()
    engine.train_step(pixels, labels)
    read = engine.metrics.read()
    assert read.loss == pytest.approx(loss.item(), rel=1e-5)
    assert len(read.kd) == S and len(read.accuracy) == S
    for (name, ours), theirs in zip(engine.ensemble.named_parameters(), twin.parameters(), strict=True):
        if theirs.grad is not None:
            assert (ours.grad.double() - theirs.grad).norm() <= 1e-4 * theirs.grad.norm() + 1e-6, name


# What each of three students learns from: weights of the students' predictions.
LEARN_FROM = {
    "others": ((0, 1 / 2, 1 / 2), (1 / 2, 0, 1 / 2), (1 / 2, 1 / 2, 0)),
    "neighbours": ((0, 1, 0), (1 / 2, 0, 1 / 2), (0, 1, 0)),
    "wider": ((0, 1 / 2, 1 / 2), (1, 0, 0), (1 / 2, 1 / 2, 0)),
    "equal_or_wider": ((1, 0, 0), (1 / 2, 1 / 2, 0), (1 / 3, 1 / 3, 1 / 3)),
    "all": ((1 / 3, 1 / 3, 1 / 3),) * 3,
}


@pytest.mark.parametrize(
    ("learn_from", "average", "strengths"),
    [
        ("others", False, None),
        ("neighbours", False, (1.0, 0.5, 2.0)),
        ("neighbours", True, None),
        ("wider", False, (0.0, 1.0, 0.5)),
        ("equal_or_wider", True, (0.3, 1.0, 2.0)),
        ("all", True, None),
    ],  # fmt: skip
)
def test_students_learn_from_the_chosen_students(learn_from, average, strengths):
    """Two steps, so that the averaged family differs from the current one."""
    decay = 0.5 if average else None
    config = TrainConfig(
        num_students=S, warmup_epochs=0, learn_from=learn_from, learn_from_average=average, kd_strengths=strengths,
        ema_decay=decay, ce_weight=1.0, kd_weight=0.8, temperature=3.0, feature_weight=0.0, learning_rate=0.02,
    )  # fmt: skip
    engine, (pixels, labels) = make_engine(config, architecture=SMOOTH), make_batch(16)
    engine.train_step(pixels, labels)
    twin = copy.deepcopy(engine.ensemble).double().train()
    shared = twin.base(network_input(pixels.double()))
    logits = [branch(shared)[0] for branch in twin.branches]
    teachers = [z.detach() for z in logits]
    if average:
        averaged = copy.deepcopy(engine.average.ensemble).double()
        with torch.no_grad():
            teachers = list(averaged(network_input(pixels.double())).logits)
    loss = sum(ce(z, labels) for z in logits)
    for z, row, strength in zip(logits, LEARN_FROM[learn_from], strengths or (1.0,) * S, strict=True):
        loss = loss + 0.8 * strength * sum(w * kl(teacher, z, 3.0) for w, teacher in zip(row, teachers, strict=True))
    loss.backward()
    engine.metrics.reset()
    engine.train_step(pixels, labels)
    assert engine.metrics.read().loss == pytest.approx(loss.item(), rel=1e-5)
    for (name, ours), theirs in zip(engine.ensemble.named_parameters(), twin.parameters(), strict=True):
        if theirs.grad is not None:
            assert (ours.grad.double() - theirs.grad).norm() <= 1e-4 * theirs.grad.norm() + 1e-6, name


def test_standardised_logits_take_the_place_of_logits_in_the_distillation_term():
    config = TrainConfig(
        num_students=S, warmup_epochs=0, learn_from="wider", standardise_logits=True, ce_weight=1.0, kd_weight=9.0,
        feature_weight=0.0,
    )  # fmt: skip
    engine, (pixels, labels) = make_engine(config, architecture=SMOOTH), make_batch(16)
    twin = copy.deepcopy(engine.ensemble).double().train()
    shared = twin.base(network_input(pixels.double()))
    logits = [branch(shared)[0] for branch in twin.branches]
    standard = [(z - z.mean(dim=1, keepdim=True)) / z.std(dim=1, correction=0, keepdim=True) for z in logits]
    loss = sum(ce(z, labels) for z in logits)
    for z, row in zip(standard, LEARN_FROM["wider"], strict=True):
        loss = loss + 9.0 * sum(w * kl(teacher.detach(), z, 2.0) for w, teacher in zip(row, standard, strict=True))
    loss.backward()
    engine.train_step(pixels, labels)
    assert engine.metrics.read().loss == pytest.approx(loss.item(), rel=1e-5)
    for (name, ours), theirs in zip(engine.ensemble.named_parameters(), twin.parameters(), strict=True):
        if theirs.grad is not None:
            assert (ours.grad.double() - theirs.grad).norm() <= 1e-4 * theirs.grad.norm() + 1e-6, name


def test_the_divergence_of_the_distillation_term_can_be_chosen():
    config = TrainConfig(
        num_students=S, warmup_epochs=0, divergence="decoupled", divergence_beta=2.0, temperature=4.0, kd_weight=0.5,
        feature_weight=0.0, ce_weight=0.7,
    )  # fmt: skip
    engine, (pixels, labels) = make_engine(config, architecture=SMOOTH), make_batch(16)
    twin = copy.deepcopy(engine.ensemble).double().train()
    shared = twin.base(network_input(pixels.double()))
    logits = [branch(shared)[0] for branch in twin.branches]
    mean = torch.stack(logits).mean(dim=0).detach()
    loss = sum(0.7 * ce(z, labels) + 8.0 * decoupled(mean / 4, z / 4, labels, 2.0).mean() for z in logits)
    engine.train_step(pixels, labels)
    assert engine.metrics.read().loss == pytest.approx(loss.item(), rel=1e-5)


def test_the_base_can_learn_from_the_pseudo_teacher_alone():
    pixels, labels = make_batch(16)
    engine = make_engine(
        TrainConfig(num_students=S, warmup_epochs=0, base_gradients="pseudo_teacher"), architecture=SMOOTH
    )
    twin = copy.deepcopy(engine.ensemble).double().train()
    logits = twin(network_input(pixels.double())).logits
    mean = torch.stack(logits).mean(0)
    (0.7 * ce(logits[0], labels) + 0.15 * kl(mean, logits[0], 2.0)).backward()
    engine.train_step(pixels, labels)
    for ours, theirs in zip(engine.ensemble.base.parameters(), twin.base.parameters(), strict=True):
        assert (ours.grad.double() - theirs.grad).norm() <= 1e-4 * theirs.grad.norm()
    assert all(p.grad.any() for p in engine.ensemble.branches[2].stages[2].parameters())


@pytest.mark.parametrize("detach", [True, False])
def test_a_frozen_base_keeps_weights_and_statistics(detach):
    pixels, labels = make_batch(16)
    engine = make_engine(
        TrainConfig(num_students=S, warmup_epochs=0, freeze_base=True, detach_ensemble=detach), architecture=SMOOTH
    )
    before = copy.deepcopy(engine.ensemble.state_dict())
    for _ in range(2):
        engine.train_step(pixels, labels)
    for name, tensor in engine.ensemble.state_dict().items():
        if name.startswith("base."):
            assert torch.equal(tensor, before[name]), name
    assert not torch.equal(engine.ensemble.branches[1].classifier.weight, before["branches.1.classifier.weight"])


@pytest.mark.slow
def test_copies_and_gate_continue_from_a_saved_state():
    pixels, labels = make_batch(16)
    for config in (settings("codistillation", codistillation_delay=2), settings("one")):
        first = make_engine(config)
        first.train_step(pixels, labels)
        saved = copy.deepcopy(first.state_dict())
        second = make_engine(config)
        second.load_state_dict(saved)
        for engine in (first, second):
            engine.train_step(pixels, labels)
        for name, tensor in first.ensemble.state_dict().items():
            assert torch.equal(tensor, second.ensemble.state_dict()[name]), name


def test_a_network_alone_learns_by_plain_cross_entropy():
    options = label_options(TrainConfig(label_smoothing=0.1))
    assert (options.ce_weight, options.kd_weight, options.label_smoothing) == (1.0, 0.0, 0.1)
