"""Properties of every network: shapes of maps and logits, gradients, fused norms and compiled blocks."""

import copy

import pytest
import torch
from torch import nn

from oekd_fast import build_ensemble
from oekd_fast.layers.fast_module import use_fused_norms
from oekd_fast.models import get_architecture
from oekd_fast.training.compile_blocks import compile_blocks

# The smallest network of each kind; the others use the same modules, and test_sizes.py counts their parameters.
SMALL = ("resnet20", "resnet18", "resnext50_32x4d", "densenet_bc_12", "densenet121", "efficientnet_b0")


def map_sizes(name, size):
    strides = {"resnet20": (1, 2, 4), "densenet_bc_12": (2, 4, 4), "densenet121": (16, 32, 32)}
    return [size // stride for stride in strides.get(name, (8, 16, 32))]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [32, 224])
def test_maps_of_all_students_have_the_same_size(name, size):
    with torch.device("meta"):
        family = build_ensemble(name, 3, num_classes=7, members=(0, 2)).eval()
        output = family(torch.empty(2, 3, size, size))
    assert [tuple(z.shape) for z in output.logits] == [(2, 7)] * 2
    for j, maps in zip(family.members, output.features, strict=True):
        assert tuple(m.shape[1] for m in maps) == family.architecture.map_channels(j, 3)
        assert [tuple(m.shape[2:]) for m in maps] == [(s, s) for s in map_sizes(name, size)]


@pytest.mark.parametrize("name", [*SMALL, "resnet50"])
def test_no_1x1_convolution_is_strided(name):
    """oneDNN's backward of such a convolution corrupts memory in channels_last with few channels (its issue 6035)."""
    with torch.device("meta"):
        family = build_ensemble(name, 2)
    convolutions = [m for m in family.modules() if isinstance(m, nn.Conv2d)]
    assert not [m for m in convolutions if m.kernel_size == (1, 1) and m.stride != (1, 1)]


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_has_a_gradient_in_channels_last(name, one_thread):
    torch.manual_seed(0)
    family = build_ensemble(name, 3, num_classes=7, members=(0, 2)).to(memory_format=torch.channels_last)
    use_fused_norms(family)
    images = torch.randn(4, 3, 64, 64).to(memory_format=torch.channels_last)
    output = family(images)
    assert all(m.is_contiguous(memory_format=torch.channels_last) for maps in output.features for m in maps)
    sum(z.square().sum() for z in output.logits).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in family.network_parameters())
    family.eval()
    with torch.no_grad():
        together = family(images).logits
        for j, logits in zip(family.members, together, strict=True):
            assert torch.equal(family.student(j)(images), logits)


@pytest.mark.parametrize("name", SMALL)
def test_fused_norms_change_only_rounding(name, one_thread):
    torch.manual_seed(0)
    plain = build_ensemble(name, 3, num_classes=7, members=(2,)).to(memory_format=torch.channels_last)
    fused = copy.deepcopy(plain)
    use_fused_norms(fused)
    images = torch.randn(8, 3, 64, 64).to(memory_format=torch.channels_last)
    logits = []
    for family in (plain, fused):
        torch.manual_seed(1)  # for dropout
        logits.append(family(images).logits[0])
    torch.testing.assert_close(*logits, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", SMALL)
def test_blocks_contain_nearly_all_convolutions_of_a_branch(name):
    with torch.device("meta"):
        branch = get_architecture(name).build_branch(1, 2, 10)
    inside = {
        id(m)
        for block in branch.modules()
        if isinstance(block, get_architecture(name).block_type)
        for m in block.modules()
    }
    convolutions = [m for m in branch.modules() if isinstance(m, nn.Conv2d)]
    assert sum(id(m) in inside for m in convolutions) >= len(convolutions) - 2


def test_bottlenecks_have_two_shapes_per_stage_to_compile():
    with torch.device("meta"):
        family = build_ensemble("resnet50", 1)
    assert compile_blocks(family, family.architecture.block_type, "eager") == 8


@pytest.mark.parametrize("name", ["resnet18", "densenet_bc_12", "efficientnet_b0"])
def test_convolutions_are_initialised_kaiming_normal_by_fan_out(name):
    torch.manual_seed(0)
    branch = get_architecture(name).build_branch(0, 5, num_classes=10)
    conv = max((m for m in branch.modules() if isinstance(m, nn.Conv2d)), key=lambda m: m.weight.numel())
    height, width = conv.kernel_size
    expected = (2 / (height * width * conv.out_channels)) ** 0.5
    assert conv.weight.std().item() == pytest.approx(expected, rel=0.02)
    assert conv.weight.abs().max() > 3 * expected  # normal, not uniform
