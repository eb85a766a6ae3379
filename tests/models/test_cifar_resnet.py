import pytest
import torch
from torch import nn

from oekd_fast.models import get_architecture


@pytest.mark.parametrize(("in_channels", "parameters"), [(3, 464), (1, 176)])
def test_number_of_base_parameters(in_channels, parameters):
    base = get_architecture("resnet20").build_base(in_channels)
    assert sum(p.numel() for p in base.parameters()) == parameters


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (9, 7), (32, 32)])
@pytest.mark.parametrize("j", range(5))
def test_there_is_one_map_after_each_stage(j, size):
    architecture = get_architecture("resnet20")
    base = architecture.build_base(1)
    branch = architecture.build_branch(j, 5, num_classes=7)
    logits, maps = branch(base(torch.randn(2, 1, *size)))

    halved = tuple((s + 1) // 2 for s in size)
    quartered = tuple((s + 1) // 2 for s in halved)
    assert logits.shape == (2, 7)
    assert [m.shape[1] for m in maps] == list(architecture.map_channels(j, 5))
    assert [tuple(m.shape[2:]) for m in maps] == [size, halved, quartered]
    assert all((m >= 0).all() for m in maps)


def test_last_map_feeds_the_classifier():
    branch = get_architecture("resnet20").build_branch(1, 5, num_classes=10)
    logits, maps = branch(torch.randn(4, 16, 8, 8))
    linear = nn.functional.linear(maps[-1].mean((2, 3)), branch.classifier.weight, branch.classifier.bias)
    torch.testing.assert_close(logits, linear)


@pytest.mark.parametrize(("j", "projections"), [(0, 2), (1, 3), (4, 3)])
def test_shortcuts_project_only_where_the_shape_changes(j, projections):
    branch = get_architecture("resnet20").build_branch(j, 5, num_classes=10)
    ones = [m for m in branch.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert len(ones) == projections


def test_the_name_gives_the_number_of_layers():
    for depth in (20, 32, 44, 56, 110):
        architecture = get_architecture(f"resnet{depth}")
        modules = [*architecture.build_base(3).modules(), *architecture.build_branch(0, 5, 10).modules()]
        layers = [
            m for m in modules if isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3))
        ]
        assert len(layers) == depth


def test_initial_weights_are_xavier_normal():
    torch.manual_seed(0)
    branch = get_architecture("resnet20").build_branch(0, 5, num_classes=100)
    conv = branch.stages[2][2].conv2
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 64 + 9 * 64)) ** 0.5, rel=0.02)
    assert branch.classifier.weight.std().item() == pytest.approx((2 / (64 + 100)) ** 0.5, rel=0.05)
    assert not branch.classifier.bias.any()
