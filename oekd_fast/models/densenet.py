"""DenseNet-BC for CIFAR and DenseNet-121 (Huang et al. 2017), with a scaled growth rate of the branch.

The growth rate is the only count that is scaled and rounded; transitions halve whatever channels there are.

The base of a CIFAR network is its first convolution. The base of DenseNet-121 is its stem, first dense block and first
transition. The branch of both has three dense blocks.
"""

from collections import OrderedDict
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from oekd_fast.layers.direct_conv import conv3x3
from oekd_fast.layers.fast_module import FastModule, FastSequential
from oekd_fast.models.functional import FunctionalArchitecture, GlobalAverage, kaiming_fan_out
from oekd_fast.models.scaling import Width


class _DenseLayer(FastModule):
    """Bottleneck of 4 x growth channels; its output is appended to its input: [B, C, H, W] -> [B, C + growth, H, W]."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = conv3x3(4 * growth, growth)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(self.run_norm_relu(self.norm1, x))
        new = self.run_conv(self.conv2, self.run_norm_relu(self.norm2, new))
        return torch.cat((x, new), dim=1)


class _DenseBlock(nn.Sequential):
    def __init__(self, channels: int, growth: int, layers: int) -> None:
        super().__init__(*(_DenseLayer(channels + i * growth, growth) for i in range(layers)))
        self.channels = channels + layers * growth

    def forward(self, x: Tensor) -> Tensor:
        # Quantisation of exported programs (torchao 0.18) folds a norm into the convolution before it even where that
        # convolution's output is concatenated too, as that of a CIFAR network's base is. A copy is no convolution.
        return super().forward(x.clone() if torch.compiler.is_exporting() else x)


def _transition(channels: int) -> FastSequential:
    """Build a transition, which halves the channels, height and width."""
    return FastSequential(
        OrderedDict(
            norm=nn.BatchNorm2d(channels),
            relu=nn.ReLU(),
            conv=nn.Conv2d(channels, channels // 2, 1, bias=False),
            pool=nn.AvgPool2d(2),
        )
    )


def _head(channels: int, num_classes: int) -> nn.Module:
    return FastSequential(
        OrderedDict(
            norm=nn.BatchNorm2d(channels),
            relu=nn.ReLU(),
            pool=GlobalAverage(),
            linear=nn.Linear(channels, num_classes),
        )
    )


@dataclass(frozen=True)
class _DenseNet:
    """Options of a DenseNet.

    Args:
        growth: channels that each layer of a full-width network adds.
        layers: number of layers of each dense block of the branch.
        base_layers: number of layers of the dense block in the base; 0 for a CIFAR network, which has none.
    """

    growth: int
    layers: tuple[int, int, int]
    base_layers: int = 0

    def base(self, in_channels: int) -> nn.Module:
        stem = 2 * self.growth
        if not self.base_layers:
            return conv3x3(in_channels, stem)
        block = _DenseBlock(stem, self.growth, self.base_layers)
        return FastSequential(
            OrderedDict(
                conv=nn.Conv2d(in_channels, stem, 7, stride=2, padding=3, bias=False),
                norm=nn.BatchNorm2d(stem),
                relu=nn.ReLU(inplace=True),
                pool=nn.MaxPool2d(3, stride=2, padding=1),
                block=block,
                transition=_transition(block.channels),
            )
        )

    def channels(self, width: Width) -> tuple[int, ...]:
        channels, growth = [self._base_channels()], self._scaled_growth(width)
        for layers in self.layers[:-1]:
            channels.append((channels[-1] + layers * growth) // 2)
        return *channels[1:], channels[-1] + self.layers[-1] * growth

    def stages(self, width: Width) -> list[nn.Module]:
        inputs = (self._base_channels(), *self.channels(width)[:-1])
        *blocks, last = (
            _DenseBlock(channels, self._scaled_growth(width), layers)
            for channels, layers in zip(inputs, self.layers, strict=True)
        )
        return [*(nn.Sequential(OrderedDict(block=b, transition=_transition(b.channels))) for b in blocks), last]

    def _scaled_growth(self, width: Width) -> int:
        """Return the growth rate of a student.

        A multiple of the divisor that the next larger student has too is not taken: as all channels follow from the
        growth rate, both students would be equal.
        """
        growth = width(self.growth)
        if width.j > 0 and growth == (larger := replace(width, j=width.j - 1)(self.growth)):
            return min(larger, replace(width, rule=replace(width.rule, divisor=1))(self.growth))
        return growth

    def _base_channels(self) -> int:
        stem = 2 * self.growth
        return (stem + self.base_layers * self.growth) // 2 if self.base_layers else stem


def _cifar(growth: int, depth: int) -> _DenseNet:
    return _DenseNet(growth, layers=((depth - 4) // 6,) * 3)


_NETWORKS = {
    "densenet_bc_12": _cifar(growth=12, depth=100),
    "densenet_bc_24": _cifar(growth=24, depth=250),
    "densenet_bc_40": _cifar(growth=40, depth=190),
    "densenet121": _DenseNet(growth=32, layers=(12, 24, 16), base_layers=6),
}
ARCHITECTURES = tuple(
    FunctionalArchitecture(name, network.base, network.stages, _head, kaiming_fan_out, network.channels, _DenseLayer)
    for name, network in _NETWORKS.items()
)
