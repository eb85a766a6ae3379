"""One training step against the paper's loss written out, in every precision."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import Augmentation, DeviceBatches, Mixing, ResizedCrop, Split, mix
from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.parallel.executor import StudentError
from oekd_fast.training import backward as gradients
from oekd_fast.training.distillation import family_options
from oekd_fast.training.engine import Engine
from oekd_fast.training.prepare import prepare_family

from ..conftest import needs_executor
from ..support.engines import CPU, NORMALISATION, make_batch, make_engine, make_teacher, network_input
from ..support.smooth_network import SMOOTH


def papers_loss(ensemble, images, labels, config):
    """alpha CE + beta MSE + gamma T^2 KL, term by term."""
    output = ensemble(network_input(images))
    weights = config.loss_weights
    t = weights.temperature
    ensemble_logits = torch.stack(output.logits).mean(0)
    if config.detach_ensemble:
        ensemble_logits = ensemble_logits.detach()
    teacher = F.softmax(ensemble_logits / t, dim=1)
    loss = 0.0
    for logits in output.logits:
        kl = F.kl_div(F.log_softmax(logits / t, dim=1), teacher, reduction="batchmean")
        loss = loss + weights.ce_weight * F.cross_entropy(logits, labels) + weights.kd_weight * t * t * kl
    for block, adapters in enumerate(ensemble.adapters):
        for j, adapter in enumerate(adapters, start=1):
            target = output.features[0][block].detach()
            loss = loss + weights.feature_weight * F.mse_loss(adapter(output.features[j][block]), target)
    return loss


@pytest.mark.parametrize("channels_last", [True, False])
def test_gradients_equal_those_of_the_papers_loss(channels_last):
    config = TrainConfig(num_students=3, warmup_epochs=0, channels_last=channels_last)
    engine, (images, labels) = make_engine(config, architecture=SMOOTH), make_batch()
    twin = copy.deepcopy(engine.ensemble).double().train()
    loss = papers_loss(twin, images.double(), labels, config)
    loss.backward()
    engine.train_step(images, labels)
    assert engine.metrics.read().loss == pytest.approx(loss.item(), rel=1e-5)
    for (name, ours), theirs in zip(engine.ensemble.named_parameters(), twin.parameters(), strict=True):
        error = (ours.grad.double() - theirs.grad).norm() / theirs.grad.norm()
        assert error < 1e-4, name


@pytest.mark.parametrize("fields", [{"mixup": 0.5, "seed": 2}, {"cutmix": 1.0, "seed": 2}], ids=str)
def test_a_step_on_mixed_images_learns_from_mixed_labels(fields):
    config = TrainConfig(num_students=3, warmup_epochs=0, **fields)
    engine, (images, labels) = make_engine(config, architecture=SMOOTH), make_batch()
    random = torch.Generator().set_state(engine.generators["mixing"].get_state())
    pixels, target = mix(images, labels, 10, Mixing(config.mixup, config.cutmix), random)
    twin = copy.deepcopy(engine.ensemble).double().train()
    loss = papers_loss(twin, pixels.double(), target.double(), config)
    loss.backward()
    engine.train_step(images, labels)
    read = engine.metrics.read()
    assert read.loss == pytest.approx(loss.item(), rel=1e-5)
    for (name, ours), theirs in zip(engine.ensemble.named_parameters(), twin.parameters(), strict=True):
        assert (ours.grad.double() - theirs.grad).norm() / theirs.grad.norm() < 1e-4, name
    predicted = [z.argmax(dim=1) for z in twin(network_input(pixels.double())).logits]
    most_probable = target.argmax(dim=1)
    assert torch.equal(most_probable, labels) == (config.mixup is None)  # the ratios are 0.08 and 0.53
    assert read.accuracy == pytest.approx([100 * (p == most_probable).double().mean().item() for p in predicted])


def test_class_weights_multiply_the_cross_entropy_of_each_image_in_training_alone(one_thread):
    """The distillation term has none; the mean is over the images."""
    config, weights = TrainConfig(num_students=3, warmup_epochs=0, feature_weight=0.0), torch.linspace(0.1, 3.0, 10)
    engine, (images, labels) = make_engine(config, architecture=SMOOTH, class_weights=weights), make_batch()
    twin = copy.deepcopy(engine.ensemble).double().train()
    logits = twin(network_input(images.double())).logits
    teacher = F.softmax(torch.stack(logits).mean(0).detach() / 2, dim=1)
    ce = [F.cross_entropy(z, labels, weights.double(), reduction="sum") / 8 for z in logits]
    kd = [4 * F.kl_div(F.log_softmax(z / 2, dim=1), teacher, reduction="batchmean") for z in logits]
    (0.7 * sum(ce) + 0.15 * sum(kd)).backward()
    engine.train_step(images, labels)
    read = engine.metrics.read()
    assert read.ce == pytest.approx([x.item() for x in ce], rel=1e-5)
    assert read.kd == pytest.approx([x.item() for x in kd], rel=1e-4)
    for (name, ours), theirs in zip(engine.ensemble.named_parameters(), twin.parameters(), strict=True):
        if theirs.grad is not None:
            assert (ours.grad.double() - theirs.grad).norm() / theirs.grad.norm() < 1e-4, name
    evaluated = engine.evaluator.evaluate(DeviceBatches(Split(images, labels), CPU))
    with torch.no_grad():
        logits = engine.ensemble.eval()(network_input(images)).logits
    assert evaluated.ce == pytest.approx([F.cross_entropy(z, labels).item() for z in logits], rel=1e-4)


def test_a_baseline_trains_by_plain_cross_entropy():
    config = TrainConfig(num_students=3, warmup_epochs=0)
    engine, (images, labels) = make_engine(config, members=(1,)), make_batch()
    twin = copy.deepcopy(engine.ensemble).train()
    loss = F.cross_entropy(twin(network_input(images)).logits[0], labels)
    engine.train_step(images, labels)
    read = engine.metrics.read()
    assert read.loss == pytest.approx(loss.item(), rel=1e-5)
    assert read.kd == pytest.approx([0.0], abs=1e-6) and read.feature == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_trains_like_fp32(precision):
    images, labels = make_batch(16)
    losses = {}
    for name in ("fp32", precision):
        engine = make_engine(TrainConfig(num_students=2, warmup_epochs=0, learning_rate=0.02, precision=name))
        losses[name] = []
        for _ in range(8):
            engine.metrics.reset()
            engine.train_step(images, labels)
            losses[name].append(engine.metrics.read().loss)
        assert all(p.dtype == torch.float32 for p in engine.ensemble.parameters())
    assert losses[precision][0] == pytest.approx(losses["fp32"][0], rel=0.02)
    assert losses[precision][-1] < 0.7 * losses[precision][0]


def test_fp16_skips_a_step_that_overflows_and_halves_the_scale():
    engine, (images, labels) = make_engine(TrainConfig(num_students=2, warmup_epochs=0, precision="fp16")), make_batch()
    before = copy.deepcopy(engine.ensemble.state_dict())
    engine.scaler.load_state_dict({**engine.scaler.state_dict(), "scale": 2.0**40})
    engine.train_step(images, labels)
    assert engine.scaler.state_dict()["scale"] == 2.0**39
    for name, parameter in engine.ensemble.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_evaluation_changes_no_weights_and_counts_every_image():
    engine, (images, labels) = make_engine(), make_batch(13)
    engine.train_step(*make_batch())
    before = copy.deepcopy(engine.ensemble.state_dict())
    read = engine.evaluator.evaluate(DeviceBatches(Split(images, labels), CPU))
    for name, value in engine.ensemble.state_dict().items():
        assert torch.equal(value, before[name]), name
    with torch.no_grad():
        logits = engine.ensemble.eval()(network_input(images)).logits
    assert read.images == 13
    assert read.accuracy == pytest.approx([100 * (z.argmax(1) == labels).double().mean().item() for z in logits])
    assert read.ce == pytest.approx([F.cross_entropy(z, labels).item() for z in logits], rel=1e-4)


def test_images_larger_than_the_crop_are_evaluated_at_their_centre(one_thread):
    engine, (images, labels) = make_engine(augmentation=ResizedCrop(6, flip=True)), make_batch(13)
    engine.train_step(images, labels)
    read = engine.evaluator.evaluate(DeviceBatches(Split(images, labels), CPU))
    with torch.no_grad():
        logits = engine.ensemble.eval()(network_input(images[:, :, 1:7, 1:7])).logits
    assert read.accuracy == pytest.approx([100 * (z.argmax(1) == labels).double().mean().item() for z in logits])
    assert read.ce == pytest.approx([F.cross_entropy(z, labels).item() for z in logits], rel=1e-4)


@pytest.mark.parametrize("fields", [{}, {"objective": "one"}], ids=str)
def test_evaluation_with_flips_is_that_of_the_mean_logits(fields, one_thread):
    config = TrainConfig(num_students=2, warmup_epochs=0, **fields)
    engine, (images, labels) = make_engine(config, augmentation=ResizedCrop(6, flip=True)), make_batch(13)
    engine.train_step(images, labels)
    batches = DeviceBatches(Split(images, labels), CPU)
    plain, flipped = engine.evaluator.evaluate(batches), engine.evaluator.evaluate(batches, flips=True)
    seen = images[:, :, 1:7, 1:7]
    with torch.no_grad():
        (one, gate), (other, other_gate) = (
            engine.ensemble.eval().forward_gated(network_input(pixels)) for pixels in (seen, seen.flip(3))
        )
    mean = [(z + y) / 2 for z, y in zip(one.logits, other.logits, strict=True)]
    assert flipped.ce == pytest.approx([F.cross_entropy(z, labels).item() for z in mean], rel=1e-4)
    assert flipped.accuracy == pytest.approx([100 * (z.argmax(1) == labels).double().mean().item() for z in mean])
    weights = torch.full((13, 2), 0.5) if gate is None else (gate + other_gate) / 2
    ensemble = (weights.T[:, :, None] * torch.stack(mean)).sum(dim=0)
    assert flipped.ensemble_ce == pytest.approx(F.cross_entropy(ensemble, labels).item(), rel=1e-4)
    probabilities = engine.evaluator.probabilities(batches, flips=True)
    torch.testing.assert_close(probabilities, torch.stack(mean).softmax(dim=2), rtol=1e-4, atol=1e-5)
    assert flipped.ce != plain.ce and engine.evaluator.evaluate(batches) == plain


@pytest.mark.slow
@pytest.mark.parametrize("augmentation", [Augmentation(pad=1, flip=True), ResizedCrop(7, flip=True)])
def test_a_step_reads_no_value_on_the_host(monkeypatch, augmentation):
    engine, (images, labels) = make_engine(augmentation=augmentation), make_batch()
    engine.train_step(images, labels)

    def refuse(self, *args):
        raise AssertionError("a value was read on the host")

    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    engine.train_step(images, labels)


FAKE_TENSOR_CONFIGS = [
    {"precision": "bf16", "clip_norm": 1.0},
    {"optimizer": "adam"},
    {"precision": "fp16", "clip_norm": 1.0},
    {"precision": "fp16", "optimizer": "adam"},
]


@pytest.mark.slow
@pytest.mark.parametrize("fields", FAKE_TENSOR_CONFIGS, ids=str)
def test_a_step_runs_on_fake_tensors(fields):
    config = TrainConfig(num_students=2, executor="sequential", **fields)
    with FakeTensorMode():
        ensemble = build_ensemble("resnet20", 2, 10)
        engine = Engine(
            config, prepare_family(ensemble, config), family_options(config), device=CPU, normalisation=NORMALISATION,
            augmentation=Augmentation(pad=1, flip=True), steps_per_epoch=4,
        )  # fmt: skip
        images, labels = torch.empty(4, 3, 8, 8, dtype=torch.uint8), torch.empty(4, dtype=torch.int64)
        for _ in range(2):
            engine.train_step(images, labels)
        assert all(p.grad.shape == p.shape for p in ensemble.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"mixup": 0.2, "cutmix": 1.0, "micro_batches": 3}], ids=str)
def test_a_loaded_state_continues_bit_for_bit(fields, one_thread):
    def run(engine, steps):
        for _ in range(steps):
            engine.train_step(*make_batch(16))

    config = TrainConfig(num_students=3, warmup_epochs=0, **fields)
    augmentation = Augmentation(pad=1, flip=True)
    straight = make_engine(config, augmentation=augmentation, architecture=SMOOTH)
    run(straight, 4)
    first = make_engine(config, augmentation=augmentation, architecture=SMOOTH)
    run(first, 2)
    second = make_engine(config, augmentation=augmentation, architecture=SMOOTH)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for name, generator in second.generators.items():
        generator.set_state(first.generators[name].get_state())
    run(second, 2)
    for name, value in straight.ensemble.state_dict().items():
        assert torch.equal(value, second.ensemble.state_dict()[name]), name
    assert torch.equal(straight.metrics.sums, second.metrics.sums)


@pytest.mark.parametrize("executor", [pytest.param("parallel", marks=needs_executor), "sequential"])
@pytest.mark.parametrize("detach_ensemble", [True, False])
def test_both_forms_of_backward_agree_with_autograd(executor, detach_ensemble):
    config = TrainConfig(num_students=3, warmup_epochs=0, executor=executor, detach_ensemble=detach_ensemble)
    engine, (images, labels) = make_engine(config, architecture=SMOOTH), make_batch()
    twin = copy.deepcopy(engine.ensemble).double().train()
    papers_loss(twin, images.double(), labels, config).backward()
    engine.train_step(images, labels)
    for (name, ours), theirs in zip(engine.ensemble.named_parameters(), twin.parameters(), strict=True):
        assert (ours.grad.double() - theirs.grad).norm() / theirs.grad.norm() < 1e-4, name


@pytest.mark.parametrize("fields", [{}, {"objective": "fitnets", "teacher": "given"}, {"objective": "one"}], ids=str)
def test_backward_on_streams_equalsbackward_in_threads(fields, monkeypatch, one_thread):
    """Both run on the CPU here; on streams, the intermediate loss is computed before all backward passes."""
    config = TrainConfig(num_students=3, warmup_epochs=0, **fields)
    images, labels = make_batch()
    states, losses = [], []
    for backward in (gradients.backward_in_threads, gradients._backward_on_streams):
        monkeypatch.setattr(gradients, "backward_in_threads", backward)
        engine = make_engine(config, teacher=None if config.teacher is None else make_teacher())
        engine.train_step(images, labels)
        states.append(engine.ensemble.state_dict())
        losses.append(engine.metrics.read().loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


@pytest.mark.slow
@needs_executor
def test_deterministic_training_does_not_depend_on_the_executor(threads):
    threads(2)
    states = []
    for executor in ("parallel", "sequential"):
        engine = make_engine(TrainConfig(num_students=3, warmup_epochs=0, executor=executor, deterministic=True))
        for _ in range(3):
            engine.train_step(*make_batch())
        states.append([*engine.ensemble.state_dict().values(), engine.metrics.sums])
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))


def test_a_base_without_gradients_keeps_its_weights():
    engine, batch = make_engine(), make_batch()
    engine.ensemble.base.requires_grad_(False)
    before = copy.deepcopy(engine.ensemble.state_dict())
    engine.train_step(*batch)
    changed = {name for name, p in engine.ensemble.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name, p in engine.ensemble.named_parameters() if p.requires_grad}


def test_a_family_without_adapters_trains_like_one_whose_adapters_have_no_loss(one_thread):
    config = TrainConfig(num_students=2, warmup_epochs=0, feature_weight=0.0)
    full, bare = make_engine(config), make_engine(config, adapters=False)
    for engine in (full, bare):
        engine.train_step(*make_batch())
    trained = full.ensemble.state_dict()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in bare.ensemble.state_dict().items())


def test_a_feature_loss_of_a_family_without_adapters_is_refused():
    with pytest.raises(ValueError, match="ensemble: expected adapters, since feature_weight is 0.15, got a family"):
        make_engine(TrainConfig(num_students=2), adapters=False)


def test_clipping_scales_all_gradients_to_the_norm():
    norms = {}
    for clip in (None, 0.01):
        engine = make_engine(TrainConfig(num_students=2, warmup_epochs=0, clip_norm=clip))
        engine.train_step(*make_batch())
        norms[clip] = torch.cat([p.grad.flatten() for p in engine.ensemble.parameters()])
    assert norms[None].norm() > 0.1 and norms[0.01].norm() == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(norms[0.01], norms[None] * (0.01 / norms[None].norm()), rtol=1e-3, atol=1e-9)


def test_evaluation_uses_the_averaged_weights():
    engine, (images, labels) = make_engine(TrainConfig(num_students=2, warmup_epochs=0, ema_decay=0.5)), make_batch(13)
    first = copy.deepcopy(engine.ensemble.state_dict())
    engine.train_step(images, labels)
    for name, value in engine.evaluator.ensemble.state_dict().items():
        if value.is_floating_point():  # decay (1 + 0) / (10 + 0) in the first step
            expected = 0.1 * first[name] + 0.9 * engine.ensemble.state_dict()[name]
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    read = engine.evaluator.evaluate(DeviceBatches(Split(images, labels), CPU))
    with torch.no_grad():
        logits = engine.evaluator.ensemble(network_input(images)).logits
    assert read.ce == pytest.approx([F.cross_entropy(z, labels).item() for z in logits], rel=1e-4)


def test_evaluation_counts_every_image_of_a_partial_last_batch_once(monkeypatch):
    monkeypatch.setattr("oekd_fast.training.evaluation.BATCH_SIZE", 5)
    engine, (images, labels) = make_engine(), make_batch(13)
    read = engine.evaluator.evaluate(DeviceBatches(Split(images, labels), CPU))
    with torch.no_grad():
        logits = engine.ensemble.eval()(network_input(images)).logits
    assert read.images == 13
    assert read.accuracy == pytest.approx([100 * (z.argmax(1) == labels).double().mean().item() for z in logits])
    assert read.ce == pytest.approx([F.cross_entropy(z, labels).item() for z in logits], rel=1e-4)


def test_a_step_after_one_whose_student_raised_is_unaffected():
    engine, batch = make_engine(), make_batch()
    branch = engine.ensemble.branches[1]
    forward = branch.forward

    def fail(x):
        raise ArithmeticError("no luck")

    branch.forward = fail
    with pytest.raises(StudentError, match="^student 2: ArithmeticError: no luck$") as caught:
        engine.train_step(*batch)
    assert isinstance(caught.value.__cause__, ArithmeticError)
    branch.forward = forward
    engine.train_step(*batch)
    assert engine.metrics.read().first_bad_step is None


def test_a_step_before_the_first_epoch_raises():
    with pytest.raises(RuntimeError, match="^step: expected begin_epoch to be called first$"):
        make_engine().step()
