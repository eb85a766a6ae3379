"""CIFAR ResNets of 6n + 2 layers (He et al. 2016, section 4.2), scaled as in arXiv 2011.07449."""

from functools import partial

from torch import nn

from oekd_fast.layers.direct_conv import conv3x3
from oekd_fast.layers.fast_module import FastSequential
from oekd_fast.models.functional import FunctionalArchitecture
from oekd_fast.models.residual import BasicBlock, residual_stage
from oekd_fast.models.scaling import Width

_BASE_CHANNELS = 16
_STAGE_CHANNELS = (16, 32, 64)
_STAGE_STRIDES = (1, 2, 2)


def _base(in_channels: int) -> nn.Module:
    return FastSequential(
        conv3x3(in_channels, _BASE_CHANNELS),
        nn.BatchNorm2d(_BASE_CHANNELS),
        nn.ReLU(inplace=True),
    )


def _widths(width: Width) -> tuple[int, ...]:
    return tuple(width(channels) for channels in _STAGE_CHANNELS)


def _stages(blocks_per_stage: int, width: Width) -> list[nn.Module]:
    widths = _widths(width)
    inputs = (_BASE_CHANNELS, *widths[:-1])
    return [
        residual_stage(lambda c, s, out=out: BasicBlock(c, out, s), in_width, out, blocks_per_stage, stride)
        for in_width, out, stride in zip(inputs, widths, _STAGE_STRIDES, strict=True)
    ]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_normal_(module.weight)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


ARCHITECTURES = tuple(
    FunctionalArchitecture(
        f"resnet{6 * blocks + 2}", _base, partial(_stages, blocks), nn.Linear, _initialise, _widths, BasicBlock
    )
    for blocks in (3, 5, 7, 9, 18)
)
