"""Which channels remain, how many, and in what order: importance, groups, heads, divisors and modules kept whole."""

import pytest
import torch
from torch import nn

from oekd_fast.models import Width
from oekd_fast.models.any_network import scale_module
from oekd_fast.models.any_network.groups import fewer_groups
from oekd_fast.models.scaling import WidthRule

from ...support.small_networks import IMAGE, Bottleneck, VisionTransformer, conv, head, regnet, resnet, vit

IMAGES = torch.randn(2, *IMAGE, generator=torch.Generator().manual_seed(0))


def chain():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def shapes(module):
    return {name: tuple(p.shape) for name, p in module.named_parameters() if p.ndim > 1}


def test_the_largest_norms_over_all_members_remain_in_their_order():
    network = chain()
    first, last = network[0], network[2]
    with torch.no_grad():
        for row, norm in enumerate([3.0, 1.0, 0.0, 2.0, 0.0, 2.5]):
            first.weight[row] = torch.tensor([norm, 0, 0, 0])
            first.bias[row] = 0
        last.weight.zero_()
        last.weight[1, 4] = 2.75  # a member of channel 4 whose other members are zero
    narrow = scale_module(network, torch.randn(2, 4), Width(1, 2))
    kept = [0, 4, 5]
    assert torch.equal(narrow[0].weight, first.weight[kept]) and torch.equal(narrow[0].bias, first.bias[kept])
    assert torch.equal(narrow[2].weight, last.weight[:, kept]) and torch.equal(narrow[2].bias, last.bias)
    assert (narrow[0].out_features, narrow[2].in_features, narrow[2].out_features) == (3, 3, 3)


def test_channels_of_the_same_importance_remain_by_their_position():
    network = chain()
    nn.init.ones_(network[0].weight)
    nn.init.zeros_(network[0].bias)
    nn.init.ones_(network[2].weight)
    with torch.no_grad():
        network[2].weight[0] = torch.arange(6.0).sign()  # the first channel has the smallest norm
    narrow = scale_module(network, torch.randn(2, 4), Width(1, 2))
    assert torch.equal(narrow[2].weight, network[2].weight[:, 1:4])


def test_a_fresh_start_has_the_sizes_of_a_slice_and_new_weights():
    torch.manual_seed(1)
    network = resnet()
    nn.init.constant_(network[0][0].weight, 9.0)
    nn.init.constant_(network[0][1].running_mean, 7.0)
    sliced, fresh = (scale_module(network, IMAGES, Width(1, 2), start=start) for start in ("slice", "fresh"))
    assert shapes(sliced) == shapes(fresh)
    assert (sliced[0][0].weight == 9).all() and (sliced[0][1].running_mean == 7).all()
    bound = (3 * 9) ** -0.5  # PyTorch's, for 3 x 3 kernels of 3 channels
    assert 0.9 * bound < fresh[0][0].weight.abs().max() <= bound and (fresh[0][1].running_mean == 0).all()
    torch.manual_seed(5)
    again = scale_module(network, IMAGES, Width(1, 2), start="fresh")
    torch.manual_seed(5)
    assert torch.equal(again[0][0].weight, scale_module(network, IMAGES, Width(1, 2), start="fresh")[0][0].weight)


def test_modules_kept_whole_keep_all_that_is_added_to_their_output():
    network = resnet()
    narrow = scale_module(network, IMAGES, Width(1, 2), keep=["0"])
    before, after = shapes(network), shapes(narrow)
    assert after["0.0.weight"] == before["0.0.weight"]
    assert after["1.conv1.0.weight"] == (8, 16, 3, 3)
    assert after["1.conv2.0.weight"] == (16, 8, 3, 3)  # added to the output of the stem
    assert after["2.conv2.0.weight"] == (16, 16, 3, 3)


@pytest.mark.parametrize(
    ("groups", "channels", "ratio", "fewer"),
    [
        (32, 4, 0.5, True),  # 16 groups of 4, as close as 32 of 2
        (46, 8, 0.2, True),  # 9 groups: 72 of 73
        (3, 8, 0.4, False),  # 3 groups of 3 make 9, one group of 8 makes 8; 9 are asked for
        (2, 48, 0.6, False),
        (64, 1, 0.2, True),  # depthwise
    ],
)
def test_groups_become_fewer_or_thinner_by_what_comes_closer(groups, channels, ratio, fewer):
    assert fewer_groups(groups, channels, lambda c: max(1, int(c * ratio))) is fewer


@pytest.mark.parametrize("j", [1, 2, 3, 4])
def test_grouped_convolutions_are_valid_at_all_widths(j):
    narrow = scale_module(regnet(), IMAGES, Width(j, 5))
    for module in narrow.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            out, inside = module.weight.shape[:2]
            assert (module.out_channels, module.in_channels) == (out, inside * module.groups)
            assert out % module.groups == 0


@pytest.mark.parametrize(
    ("groups", "j", "left"),
    [(32, 1, (26, 52)), (8, 1, (6, 48)), (4, 2, (4, 36)), (1, 1, (1, 51)), (64, 1, (51, 51)), (8, 4, (2, 16))],
)
def test_group_normalisation_divides_what_remains(groups, j, left):
    network = nn.Sequential(nn.Conv2d(3, 64, 3, 2), nn.GroupNorm(groups, 64), nn.ReLU(), head(64))
    norm = scale_module(network, IMAGES, Width(j, 5))[1]
    assert (norm.num_groups, norm.num_channels) == left and norm.weight.shape == (left[1],)


def test_removed_groups_leave_the_statistics_of_the_others():
    network = nn.Sequential(nn.Conv2d(3, 32, 3, 2), nn.GroupNorm(8, 32), nn.ReLU(), head(32)).double().eval()
    with torch.no_grad():
        removed = torch.arange(32).reshape(8, 4)[[1, 2, 6, 7]].flatten()
        for parameter in (network[0].weight, network[0].bias, network[1].weight, network[1].bias):
            parameter[removed] = 0
        network[3][2].weight[:, removed] = 0
    narrow = scale_module(network, IMAGES.double(), Width(1, 2))
    assert narrow[1].num_groups == 4
    torch.testing.assert_close(narrow(IMAGES.double()), network(IMAGES.double()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("channels, heads", [(48, 3), (64, 4), (40, 5)])
@pytest.mark.parametrize("j", [1, 2, 3, 4])
def test_embeddings_stay_divisible_by_the_number_of_heads(channels, heads, j):
    narrow = scale_module(VisionTransformer(channels, heads), IMAGES, Width(j, 5))
    expected = heads * Width(j, 5)(channels // heads)
    assert narrow.token.shape == (1, 1, expected) and narrow.positions.shape == (1, 17, expected)
    for block in narrow.blocks:
        assert block.attention.qkv.weight.shape == (3 * expected, expected) and block.attention.heads == heads
        assert block.norm1.normalized_shape == (expected,)
        assert block.mlp[0].weight.shape == (Width(j, 5)(2 * channels), expected)


def test_a_divisor_rounds_all_counts():
    width = Width(1, 5, WidthRule(divisor=8))
    narrow = scale_module(Bottleneck(64, 64, 96, se=True), torch.randn(2, 64, 8, 8), width)
    assert shapes(narrow)["reduce.0.weight"] == (80, 64, 1, 1)  # 76.8
    network = nn.Sequential(conv(3, 64), Bottleneck(64, 128, 96), head(128))
    sizes = shapes(scale_module(network, IMAGES, width))
    assert sizes["0.0.weight"] == (48, 3, 3, 3) and sizes["1.expand.0.weight"] == (104, 80, 1, 1)
    assert shapes(scale_module(vit(), IMAGES, width))["head.weight"] == (10, 36)  # 3 heads of 12: below 2 x 8
