"""A network whose removed channels are zero everywhere computes the same as its narrower copy, to rounding."""

import copy

import pytest
import torch
from torch import nn

from oekd_fast.models import Width
from oekd_fast.models.any_network import scale_module
from oekd_fast.models.any_network.layouts import dims_of
from oekd_fast.models.any_network.recording import record

from ...support.small_networks import IMAGE, NETWORKS, TransformerBlock, VisionTransformer

# Statistics over channels count zeros; without them, the outputs agree.
OVER_CHANNELS = (nn.LayerNorm, nn.GroupNorm)


class Fused(nn.Module):
    """Attention with PyTorch's function and projections of their own."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.project = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = (layer(x).view(b, n, self.heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.project(y.transpose(1, 2).reshape(b, n, c))


class Constant(Fused):
    """Attention whose scale is an attribute."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__(channels, heads)
        self.head_dim = channels // heads
        self.scale = self.head_dim**-0.5

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = (layer(x).view(b, n, self.heads, self.head_dim).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.project(y.transpose(1, 2).reshape(b, n, c))


CASES = NETWORKS | {
    "fused": lambda: VisionTransformer(attention=Fused),
    "constant": lambda: VisionTransformer(attention=Constant),
    "two heads": lambda: VisionTransformer(32, 2, Fused),
}


def without(module, types):
    for name, child in module.named_children():
        setattr(module, name, nn.Identity() if isinstance(child, types) else without(child, types))
    return module


def with_random_norms(module):
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            for values in (part.bias, part.running_mean):
                nn.init.normal_(values, 0, 0.3)
            nn.init.uniform_(part.running_var, 0.5, 2)
    return module


def with_zeros(network, images, width):
    """Return a copy whose parameters are zero in all channels that `width` removes."""
    recorded = record(network, (images,), width)
    zeroed = copy.deepcopy(network)
    parameters = dict(zeroed.named_parameters())
    for name, layout in recorded.layouts.items():
        for factor in layout.factors if name in parameters else ():
            removed = ~recorded.kept[recorded.sets.find(factor).reshape(-1)]
            parameters[name].data.index_fill_(dims_of(factor)[0], removed.nonzero()[:, 0], 0)
    return zeroed


@pytest.mark.parametrize("j", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_channels_of_zeros_can_be_removed(name, j):
    torch.manual_seed(0)
    network = with_random_norms(without(CASES[name](), OVER_CHANNELS)).double().eval()
    images, width = torch.randn(2, *IMAGE, dtype=torch.float64), Width(j, 5)
    zeroed = with_zeros(network, images, width)
    narrow = scale_module(zeroed, images, width)
    assert sum(p.numel() for p in narrow.parameters()) < sum(p.numel() for p in network.parameters())
    torch.testing.assert_close(narrow(images), zeroed(images), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(zeroed(images), network(images), rtol=0.01)


def test_attention_of_a_module_that_runs_twice_is_rescaled_once():
    torch.manual_seed(0)
    block = without(TransformerBlock(24, Fused(24, 2)), OVER_CHANNELS)
    shared = nn.Sequential(nn.Flatten(2), nn.Linear(32 * 32, 24), block, block, nn.Linear(24, 5)).double().eval()
    images, width = torch.randn(2, *IMAGE, dtype=torch.float64), Width(2, 5)
    zeroed = with_zeros(shared, images, width)
    torch.testing.assert_close(scale_module(zeroed, images, width)(images), zeroed(images), rtol=1e-12, atol=1e-12)
