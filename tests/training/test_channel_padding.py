"""Families whose channels are padded to multiples of 8: equality with the same family without padding."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.distributed.buckets import Bucket, GradientBuckets
from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.family.flops import student_flops
from oekd_fast.layers.fast_module import FastSequential
from oekd_fast.models import FunctionalArchitecture
from oekd_fast.models.residual import BasicBlock
from oekd_fast.parallel.executor import make_executor
from oekd_fast.training.backward import StepTerms, backward_as_one, backward_side_by_side
from oekd_fast.training.channel_padding import (
    pad_channels,
    padding_note,
    pads_channels,
    unaligned_channels,
    why_not_padded,
    without_padding,
)
from oekd_fast.training.distillation import family_options
from oekd_fast.training.optimizer import OptimizerState, build_optimizer
from oekd_fast.training.prepare import prepare_family
from oekd_fast.training.weight_average import WeightAverage

from ..support.engines import CPU, make_batch, make_engine

pytestmark = pytest.mark.usefixtures("one_thread")


def _base(channels):
    return FastSequential(nn.Conv2d(channels, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())


def _blocks(width):
    last = FastSequential(nn.Conv2d(width(12), width(20), 1), nn.BatchNorm2d(width(20)), nn.ReLU(), nn.MaxPool2d(2))
    return [BasicBlock(12, width(12), 2), last]


# Students have 12 and 20, 6 and 10 channels; student 0, with which the other is compared, is padded too.
SMALL = FunctionalArchitecture("small", _base, _blocks, nn.Linear)
CONFIG = TrainConfig(num_students=2, weight_decay=1e-2, momentum=0.9, learning_rate=0.05)


def build(architecture=SMALL, dtype=torch.float64, **options):
    torch.manual_seed(0)
    return build_ensemble(architecture, 2, 10, **options).to(dtype, memory_format=torch.channels_last)


def padded(family):
    copied = copy.deepcopy(family)
    pad_channels(copied)
    return copied


class Trainer:
    """Trains a family by the parts of the engine, in any dtype."""

    def __init__(self, family, config=CONFIG, run=backward_side_by_side):
        self.family, self.run = family.train(), run
        rates = [torch.tensor(config.peak_rate), torch.tensor(config.adapter_rate)]
        self.optimizer = build_optimizer(config, family, *rates)
        self.state = OptimizerState(self.optimizer, family)
        self.average = WeightAverage(family)
        self.executor = make_executor("sequential", 2, CPU)
        self.nothing_sent = GradientBuckets({}, Bucket("base", [], 1), [], torch.ones(()))
        self.terms = StepTerms(vars(family_options(config)), torch.tensor(0.1, dtype=torch.float64))

    def step(self, images, labels):
        self.optimizer.zero_grad()
        autocast = torch.autocast("cpu", enabled=False)
        losses = self.run(self.family, images, labels, self.terms, self.executor, autocast, self.nothing_sent)
        self.optimizer.step()
        self.average.update(torch.tensor(0.1, dtype=torch.float64))
        return losses.total


def padding_of(state, module):
    """Yield the tensors of `module` with their padding alone, by setting what `state` holds without padding to 0."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        rest = tensor.detach().clone()
        rest[tuple(map(slice, state[name].shape))] = 0
        yield name, rest


def assert_zero_padding(trainer):
    family = trainer.family
    without = family.state_dict()
    assert sum(p.numel() for p in family.parameters()) > sum(without[n].numel() for n, _ in family.named_parameters())
    for module in (family, trainer.average.ensemble):
        assert not [name for name, rest in padding_of(without, module) if rest.any()]
    for name, parameter in family.named_parameters():
        tensors = (parameter.grad, *trainer.optimizer.state[parameter].values())
        for tensor in (t for t in tensors if t is not None and t.shape == parameter.shape):
            rest = tensor.clone()
            rest[tuple(map(slice, without[name].shape))] = 0
            assert not rest.any(), name


def batches(count, rows=4):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        images = torch.randn(rows, 3, 6, 6, dtype=torch.float64, generator=generator)
        yield images, torch.randint(10, (rows,), generator=generator)


def assert_states_agree(ours, theirs, **tolerance):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


@pytest.mark.parametrize("run", [backward_side_by_side, backward_as_one])
def test_50_steps_in_fp64_are_those_of_the_family_without_padding(run):
    plain = Trainer(build(gated=True), run=run)
    trainer = Trainer(padded(plain.family), run=run)
    for images, labels in batches(50 if run is backward_side_by_side else 3):
        totals = [t.step(images, labels) for t in (plain, trainer)]
        torch.testing.assert_close(*totals, rtol=1e-10, atol=0)
    assert_zero_padding(trainer)
    for ours, theirs in ((trainer.family, plain.family), (trainer.average.ensemble, plain.average.ensemble)):
        assert_states_agree(ours.state_dict(), theirs.state_dict(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_padding_stays_zero_with_other_optimizers(optimizer):
    config = replace(CONFIG, optimizer=optimizer, learning_rate=0.01)
    plain = Trainer(build(), config)
    trainer = Trainer(padded(plain.family), config)
    for images, labels in batches(3):
        for each in (plain, trainer):
            each.step(images, labels)
    assert_zero_padding(trainer)
    assert_states_agree(trainer.family.state_dict(), plain.family.state_dict(), rtol=1e-8, atol=1e-10)
    saved, expected = trainer.state.state_dict(), plain.state.state_dict()
    for position, state in expected["state"].items():
        assert_states_agree(saved["state"][position], state, rtol=1e-6, atol=1e-10)
    trainer.state.load_state_dict(saved)
    assert_zero_padding(trainer)


def test_weights_and_random_numbers_are_those_without_padding():
    plain = build()
    drawn = torch.get_rng_state()
    family = padded(plain)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert {c.out_channels for c in family.modules() if isinstance(c, nn.Conv2d) and c.groups == 1} >= {8, 16, 24}
    assert not unaligned_channels(family)
    assert_states_agree(family.state_dict(), plain.state_dict(), rtol=0, atol=0)
    for name, tensor in family.state_dict().items():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes, name  # a file holds no padding
        assert tensor.stride() == plain.state_dict()[name].stride(), name


def test_a_state_dict_loads_with_and_without_padding():
    plain, family = build(), padded(build(SMALL, gated=False))
    for tensor in plain.state_dict().values():
        tensor.add_(1)
    family.load_state_dict(plain.state_dict())
    assert_states_agree(family.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert not [name for name, rest in padding_of(plain.state_dict(), family) if rest.any()]
    with pytest.raises(RuntimeError, match="size mismatch for base.0.weight"):
        family.load_state_dict({**plain.state_dict(), "base.0.weight": torch.zeros(11, 3, 3, 3)})


def test_a_copy_without_padding_has_the_counts_and_results_of_the_network():
    plain = build()
    family = padded(plain)
    result = without_padding(family)
    assert result.parameter_counts() == plain.parameter_counts()
    assert student_flops(result, 6) == student_flops(plain, 6)
    assert repr(result) == repr(plain) != repr(family)
    assert_states_agree(result.state_dict(), plain.state_dict(), rtol=0, atol=0)
    (images, _), *_ = batches(1)
    with torch.no_grad():
        ours, theirs, ofpadded = (each.eval()(images) for each in (result, plain, family))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    torch.testing.assert_close(ofpadded.logits, theirs.logits)
    result.base[0].weight.data.zero_()
    assert family.base[0].weight.any()
    assert repr(without_padding(plain)) == repr(plain)


@pytest.mark.parametrize("objective", ["oekd", "fsp", "meal", "lit"])
def test_engines_exchange_checkpoints_with_and_without_padding(objective):
    config = replace(CONFIG, objective=objective, warmup_epochs=0, ema_decay=0.9, clip_norm=1.0, learning_rate=0.01)
    engines = [make_engine(replace(config, pad_channels=name), architecture=SMALL) for name in ("off", "on", "off")]
    plain, ours, other = engines
    assert not unaligned_channels(ours.ensemble) and unaligned_channels(plain.ensemble)
    images, labels = make_batch(4)
    plain.train_step(images, labels)
    ours.load_state_dict(copy.deepcopy(plain.state_dict()))
    ours.generators["augmentation"].set_state(plain.generators["augmentation"].get_state())
    for engine in (plain, ours):
        engine.train_step(images, labels)
    other.load_state_dict(ours.state_dict())
    for one in (ours, other):
        for part in ("model", "average"):
            assert_states_agree(one.state_dict()[part], plain.state_dict()[part], rtol=1e-4, atol=1e-5)
    assert_states_agree(ours.state_dict()["model"], other.state_dict()["model"], rtol=0, atol=0)


def test_grouped_convolutions_stay_if_their_channels_are_aligned():
    def blocks(groups, width):
        grouped = nn.Conv2d(16, 16, 3, padding=1, groups=groups)
        return [nn.Sequential(nn.Conv2d(12, 16, 1), grouped, nn.Conv2d(16, width(12), 1))]

    family = build(FunctionalArchitecture("grouped", _base, partial(blocks, 2), nn.Linear))
    (images, _), *_ = batches(1)
    torch.testing.assert_close(padded(family)(images).logits, family(images).logits)
    narrow = FunctionalArchitecture("narrow", _base, lambda w: [nn.Conv2d(12, 12, 3, groups=3)], nn.Linear)
    assert why_not_padded(build(narrow)) == "branches.0.stages.0 (Conv2d) may mix or move channels"


@pytest.mark.parametrize(
    ("base", "block", "why"),
    [
        (nn.Identity, lambda w: nn.Conv2d(3, 4, 1), "the base does not begin with a convolution"),
        (lambda c: nn.Sequential(nn.BatchNorm2d(c), nn.Conv2d(c, 4, 1)), None, "does not begin with a convolution"),
        (lambda c: BasicBlock(c, 4, 1), None, "several convolutions of the base have 3 channels, as the images"),
        (None, lambda w: nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sigmoid()), "branches.0.stages.0.1 (Sigmoid) may mix"),
        (None, lambda w: nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), "may mix or move channels"),
    ],
)
def test_networks_of_other_layers_are_not_padded(base, block, why):
    base, block = base or (lambda c: nn.Conv2d(c, 4, 1)), block or (lambda w: nn.Conv2d(4, w(4), 1))
    if base is nn.Identity:
        base = lambda c: nn.Identity()  # noqa: E731
    family = build(FunctionalArchitecture("other", base, lambda width: [block(width)], nn.Linear))
    assert why in why_not_padded(family)
    with pytest.raises(ValueError, match="ensemble: expected a network whose channels can be padded; "):
        pad_channels(family)


def test_auto_pads_on_cuda_in_channels_last_alone(monkeypatch):
    family = build()
    on_cuda = property(lambda parameter: True)
    assert not pads_channels(CONFIG, family) and padding_note(CONFIG, family) is None
    monkeypatch.setattr(nn.Parameter, "is_cuda", on_cuda, raising=False)
    assert pads_channels(CONFIG, family)
    assert not pads_channels(replace(CONFIG, channels_last=False), family)
    assert not pads_channels(replace(CONFIG, pad_channels="off"), family)
    prepare_family(family, CONFIG)
    assert padding_note(CONFIG, family) == (
        "channels: 6, 10, 12, 20 are stored as multiples of 8 (--pad-channels off stores them as they are)"
    )
    assert not pads_channels(CONFIG, build(FunctionalArchitecture(
        "aligned", lambda c: nn.Conv2d(c, 8, 1), lambda width: [nn.Conv2d(8, 8, 1)], nn.Linear)))  # fmt: skip


def test_a_densenet_stays_as_it_is_and_the_run_says_so(monkeypatch):
    family = build("densenet_bc_12", members=(1,), dtype=torch.float32)
    with pytest.raises(ValueError, match="^pad_channels: expected auto or off for densenet_bc_12, got on; branches"):
        prepare_family(family, replace(CONFIG, pad_channels="on"))
    monkeypatch.setattr(nn.Parameter, "is_cuda", property(lambda parameter: True), raising=False)
    assert not pads_channels(CONFIG, family)
    assert padding_note(CONFIG, family) == (
        "channels: stored as they are, since branches.0.stages.0.block (_DenseBlock) may mix or move channels"
    )
