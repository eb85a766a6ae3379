"""Weights that a network casts together under autocast: the same bits as casts by autocast itself."""

import copy

import pytest
import torch
from torch import nn

from bench.operations.count import DeviceOperations
from oekd_fast.common.meta_copy import meta_copy
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.layers.direct_conv import conv3x3
from oekd_fast.layers.fast_module import FastSequential
from oekd_fast.models import get_architecture
from oekd_fast.models.functional import FunctionalArchitecture
from oekd_fast.models.residual import BasicBlock
from oekd_fast.training import prepare
from oekd_fast.training.compile_blocks import compile_blocks
from oekd_fast.training.weight_casts import cast_weights_together

from ..support.engines import make_batch, make_engine

pytestmark = pytest.mark.usefixtures("one_thread")
BF16 = {"num_students": 2, "warmup_epochs": 0, "precision": "bf16"}
CONFIGS = {
    "averaged, clipped": {"ema_decay": 0.9, "clip_norm": 1.0},
    "gate, adam, frozen base": {"objective": "one", "optimizer": "adam", "freeze_base": True},
    "one graph of autograd, micro-batches": {"detach_ensemble": False, "micro_batches": 2},
}


def _base(channels):
    return FastSequential(conv3x3(channels, 4), nn.BatchNorm2d(4), nn.ReLU())


def _blocks(width):
    inner, outer = width(4), width(8)
    return [BasicBlock(4, inner, 1), BasicBlock(inner, outer, 2)]


SMALL = FunctionalArchitecture("small", _base, _blocks, nn.Linear)


def trained(fields, together):
    engine = make_engine(TrainConfig(**BF16 | fields), architecture=SMALL)
    if together:
        cast_weights_together(engine.ensemble)
    for _ in range(2):
        engine.train_step(*make_batch(4))
    return engine


@pytest.mark.parametrize("fields", CONFIGS.values(), ids=CONFIGS)
def test_a_training_has_the_same_bits(fields):
    ours, autocast = trained(fields, together=True), trained(fields, together=False)
    assert ours.metrics.read() == autocast.metrics.read()
    for (name, one), other in zip(ours.ensemble.named_parameters(), autocast.ensemble.parameters(), strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, other), name
        assert (one.grad is None) == (other.grad is None), name
        assert one.grad is None or torch.equal(one.grad, other.grad) and one.grad.stride() == other.grad.stride(), name
    for name, value in autocast.tensors().items():
        assert torch.equal(ours.tensors()[name], value), name


def family(layers, students=1):
    architecture = FunctionalArchitecture("small", lambda c: nn.Identity(), lambda width: [layers()], nn.Linear)
    return build_ensemble(architecture, students, 4, adapters=False)


def layers():
    return FastSequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False))


def gradients(ensemble, dtype=torch.bfloat16):
    """Return the gradients of all parameters, and the number of operations by operator."""
    images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    ensemble.zero_grad()
    with DeviceOperations() as counted:
        with torch.autocast("cpu", dtype=dtype):
            logits = ensemble(images).logits[0]
        logits.float().square().sum().backward()
    return {name: p.grad for name, p in ensemble.named_parameters()}, counted.operators


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_all_weights_of_a_network_take_one_cast_and_their_gradients_another(dtype):
    plain = family(layers)
    together = copy.deepcopy(plain)
    cast_weights_together(together)
    expected, by_each = gradients(plain, dtype)
    for network in (together, copy.deepcopy(together)):
        got, counted = gradients(network, dtype)
        assert all(torch.equal(got[name], grad) for name, grad in expected.items())
        assert counted["aten::_foreach_copy_"] == 2
        assert counted["aten::_to_copy"] == by_each["aten::_to_copy"] - 2 * 5  # two weights and biases, and one weight


def test_without_autocast_nothing_is_cast():
    ensemble = family(layers)
    cast_weights_together(ensemble)
    with DeviceOperations() as counted:
        ensemble(torch.randn(2, 3, 6, 6))
        meta_copy(ensemble)(torch.empty(2, 3, 6, 6, device="meta"))  # a device without autocast
    assert "aten::_foreach_copy_" not in counted.operators


def test_a_student_is_exported_as_before():
    plain = family(layers).eval()
    together = copy.deepcopy(plain)
    cast_weights_together(together)
    images = torch.randn(2, 3, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        programs = [torch.export.export(ensemble.student(0), (images,)) for ensemble in (plain, together)]
    plain_nodes, nodes = ([str(node.target) for node in program.graph.nodes] for program in programs)
    assert nodes == plain_nodes


def test_frozen_and_shared_weights():
    def shared():
        first = nn.Conv2d(3, 3, 3, padding=1)
        second = nn.Conv2d(3, 3, 3, padding=1)
        second.weight = first.weight
        first.bias.requires_grad_(False)
        return nn.Sequential(first, second)

    plain = family(shared)
    together = copy.deepcopy(plain)
    cast_weights_together(together)
    expected, _ = gradients(plain)
    got, _ = gradients(together)
    assert got.keys() == expected.keys() and sum(grad is None for grad in got.values()) == 1
    for name, grad in expected.items():
        assert grad is None and got[name] is None or torch.equal(got[name], grad), name


class ScalesItsWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return nn.functional.conv2d(x, self.conv.weight * 1.001)


def hooked():
    conv = nn.Conv2d(3, 4, 1)
    conv.register_forward_pre_hook(lambda layer, inputs: layer.register_buffer("seen", layer.weight.detach().clone()))
    return nn.Sequential(conv)


@pytest.mark.parametrize("blocks", [ScalesItsWeight, hooked])
def test_layers_whose_weights_others_may_use_are_left_to_autocast(blocks):
    plain = family(blocks)
    together = copy.deepcopy(plain)
    cast_weights_together(together)
    expected, got = gradients(plain)[0], gradients(together)[0]
    assert all(torch.equal(got[name], grad) for name, grad in expected.items() if grad is not None)
    assert all(buffer.dtype == torch.float32 for buffer in together.buffers())


def test_a_network_that_fails_has_its_own_weights_afterwards():
    ensemble = family(layers)
    cast_weights_together(ensemble)
    before = dict(ensemble.named_parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(RuntimeError, match="channels"):
        ensemble(torch.randn(2, 5, 6, 6))
    after = dict(ensemble.named_parameters())
    assert after.keys() == before.keys() and all(after[name] is before[name] for name in before)


@pytest.mark.slow
def test_compiled_blocks_take_the_casts():
    torch.manual_seed(0)
    compiled = build_ensemble("resnet20", 1, adapters=False)
    plain = copy.deepcopy(compiled)
    assert compile_blocks(compiled, get_architecture("resnet20").block_type, "eager") == 5
    cast_weights_together(compiled)
    expected, got = gradients(plain)[0], gradients(compiled)[0]
    assert all(torch.equal(got[name], grad) for name, grad in expected.items())


def test_a_family_is_prepared_for_cuda_alone(monkeypatch):
    ensemble, prepared = family(layers), []
    monkeypatch.setattr(prepare, "cast_weights_together", prepared.append)
    prepare.prepare_family(ensemble, TrainConfig(num_students=1))
    assert prepared == []
    monkeypatch.setattr(torch.nn.Parameter, "is_cuda", True, raising=False)
    prepare.prepare_family(ensemble, TrainConfig(num_students=1, pad_channels="off"))
    assert prepared == [ensemble]
