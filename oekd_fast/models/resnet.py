"""ResNets (He et al. 2016), ResNeXts (Xie et al. 2017) and Wide ResNets (Zagoruyko et al. 2016) for ImageNet.

The base contains the first stage. The planes of the other three stages are scaled, and with them the width of
bottlenecks.
"""

from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

from torch import nn

from oekd_fast.layers.fast_module import FastSequential
from oekd_fast.models.functional import FunctionalArchitecture, kaiming_fan_out
from oekd_fast.models.residual import BasicBlock, Bottleneck, residual_stage
from oekd_fast.models.scaling import Width

_STEM_CHANNELS = 64
_STAGE_PLANES = (64, 128, 256, 512)


@dataclass(frozen=True)
class _ResNet:
    """Options of a ResNet.

    Args:
        blocks: number of blocks of each stage.
        groups: groups of the 3x3 convolution of bottlenecks.
        base_width: channels per group of bottlenecks with 64 planes; 0 selects basic blocks.
    """

    blocks: tuple[int, int, int, int]
    groups: int = 1
    base_width: int = 64

    @property
    def block_type(self) -> type[nn.Module]:
        return Bottleneck if self.base_width else BasicBlock

    def channels(self, width: Width) -> tuple[int, ...]:
        return tuple(self._out_width(width(planes)) for planes in _STAGE_PLANES[1:])

    def _out_width(self, planes: int) -> int:
        return planes * Bottleneck.EXPANSION if self.base_width else planes

    def base(self, in_channels: int) -> nn.Module:
        return FastSequential(
            OrderedDict(
                conv=nn.Conv2d(in_channels, _STEM_CHANNELS, 7, stride=2, padding=3, bias=False),
                norm=nn.BatchNorm2d(_STEM_CHANNELS),
                relu=nn.ReLU(inplace=True),
                pool=nn.MaxPool2d(3, stride=2, padding=1),
                stage=self._stage(_STEM_CHANNELS, _STAGE_PLANES[0], self.blocks[0], stride=1),
            )
        )

    def stages(self, width: Width) -> list[nn.Module]:
        inputs = (self._out_width(_STAGE_PLANES[0]), *self.channels(width)[:-1])
        return [
            self._stage(in_width, width(planes), count, stride=2)
            for in_width, planes, count in zip(inputs, _STAGE_PLANES[1:], self.blocks[1:], strict=True)
        ]

    def _stage(self, in_width: int, planes: int, count: int, stride: int) -> nn.Sequential:
        return residual_stage(partial(self._block, planes), in_width, self._out_width(planes), count, stride)

    def _block(self, planes: int, in_width: int, stride: int) -> nn.Module:
        if self.base_width:
            return Bottleneck(in_width, planes, stride, self.groups, self.base_width)
        return BasicBlock(in_width, planes, stride)


_NETWORKS = {
    "resnet18": _ResNet((2, 2, 2, 2), base_width=0),
    "resnet34": _ResNet((3, 4, 6, 3), base_width=0),
    "resnet50": _ResNet((3, 4, 6, 3)),
    "resnet101": _ResNet((3, 4, 23, 3)),
    "resnet152": _ResNet((3, 8, 36, 3)),
    "resnext50_32x4d": _ResNet((3, 4, 6, 3), groups=32, base_width=4),
    "resnext101_32x8d": _ResNet((3, 4, 23, 3), groups=32, base_width=8),
    "wide_resnet50_2": _ResNet((3, 4, 6, 3), base_width=128),
    "wide_resnet101_2": _ResNet((3, 4, 23, 3), base_width=128),
}
ARCHITECTURES = tuple(
    FunctionalArchitecture(
        name, network.base, network.stages, nn.Linear, kaiming_fan_out, network.channels, network.block_type
    )
    for name, network in _NETWORKS.items()
)
