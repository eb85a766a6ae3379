"""EfficientNet-B0 to B7 (Tan and Le 2019), with scaled stages and head; the stem is the base and keeps its width.

Channels are multiples of 8, by the networks' own rule. A divisor that does not divide 8 is applied to these multiples.
The caller chooses the image resolution. BatchNorm has the eps and momentum of torchvision.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from math import ceil
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from oekd_fast.models.functional import FunctionalArchitecture, kaiming_fan_out
from oekd_fast.models.scaling import Width

_DROP_CONNECT = 0.2
_STEM_CHANNELS = 32
_HEAD_CHANNELS = 1280


class _Stage(NamedTuple):
    expansion: int
    kernel: int
    stride: int
    channels: int
    repeats: int


_STAGES = (
    _Stage(1, 3, 1, 16, 1),
    _Stage(6, 3, 2, 24, 2),
    _Stage(6, 5, 2, 40, 2),
    _Stage(6, 3, 2, 80, 3),
    _Stage(6, 5, 1, 112, 3),
    _Stage(6, 5, 2, 192, 4),
    _Stage(6, 3, 1, 320, 1),
)
Norm = Callable[[int], nn.Module]


def round_channels(channels: Fraction) -> int:
    """Round `channels` to the nearest multiple of 8 that is at least 8 and at least 0.9 x `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if 10 * rounded >= 9 * channels else rounded + 8


class _SqueezeExcite(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean(dim=(2, 3), keepdim=True)
        return x * self.expand(functional.silu(self.reduce(pooled))).sigmoid()


class _DropConnect(nn.Module):
    """In training, zero whole images of a batch with probability `p` and scale the others by 1 / (1 - p)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return x * functional.dropout(x.new_ones(x.shape[0], 1, 1, 1), self.p)

    def extra_repr(self) -> str:
        return f"p={self.p:g}"


class _MBConv(nn.Module):
    """Inverted bottleneck with squeeze-excite of C // 4 channels: [B, C, H, W] -> [B, channels, H', W']."""

    def __init__(self, in_channels: int, channels: int, stage: _Stage, stride: int, drop: float, norm: Norm) -> None:
        super().__init__()
        inner, kernel = in_channels * stage.expansion, stage.kernel
        expand = [("expand", nn.Conv2d(in_channels, inner, 1, bias=False)), ("norm1", norm(inner)), ("act1", _silu())]
        depthwise = nn.Conv2d(inner, inner, kernel, stride, padding=kernel // 2, groups=inner, bias=False)
        self.layers = nn.Sequential(
            OrderedDict(
                [
                    *(expand if stage.expansion > 1 else []),
                    ("depthwise", depthwise),
                    ("norm2", norm(inner)),
                    ("act2", _silu()),
                    ("squeeze", _SqueezeExcite(inner, max(1, in_channels // 4))),
                    ("project", nn.Conv2d(inner, channels, 1, bias=False)),
                    ("norm3", norm(channels)),
                ]
            )
        )
        self.residual = stride == 1 and in_channels == channels
        self.drop = _DropConnect(drop)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layers(x)
        return x + self.drop(out) if self.residual else out


def _silu() -> nn.Module:
    return nn.SiLU(inplace=True)


def _conv_norm(in_channels: int, channels: int, kernel: int, stride: int, norm: Norm) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, norm=norm(channels), act=_silu()))


@dataclass(frozen=True)
class _EfficientNet:
    """Options of an EfficientNet.

    Args:
        width, depth: multipliers of the channels and of the number of blocks per stage.
        dropout: probability of dropout before the classifier.
        norm: constructor of the BatchNorm layers from their number of channels.
    """

    width: Fraction
    depth: Fraction
    dropout: float
    norm: Norm = nn.BatchNorm2d

    def base(self, in_channels: int) -> nn.Module:
        return _conv_norm(in_channels, round_channels(_STEM_CHANNELS * self.width), 3, 2, self.norm)

    def channels(self, width: Width) -> tuple[int, ...]:
        ends = (_STAGES[2].channels, _STAGES[4].channels, _HEAD_CHANNELS)
        return tuple(self._scaled(channels, width) for channels in ends)

    def blocks(self, width: Width) -> list[nn.Module]:
        repeats = [ceil(stage.repeats * self.depth) for stage in _STAGES]
        channels, blocks_built = round_channels(_STEM_CHANNELS * self.width), 0
        stages = []
        for stage, count in zip(_STAGES, repeats, strict=True):
            layers, out = [], self._scaled(stage.channels, width)
            for i in range(count):
                drop = _DROP_CONNECT * blocks_built / sum(repeats)
                layers.append(_MBConv(channels, out, stage, stage.stride if i == 0 else 1, drop, self.norm))
                channels, blocks_built = out, blocks_built + 1
            stages.append(nn.Sequential(*layers))
        stages.append(_conv_norm(channels, self._scaled(_HEAD_CHANNELS, width), 1, 1, self.norm))
        return [nn.Sequential(*stages[:3]), nn.Sequential(*stages[3:5]), nn.Sequential(*stages[5:])]

    def _scaled(self, channels: int, width: Width) -> int:
        whole = channels * self.width
        return width.rounded(round_channels(whole * width.ratio), round_channels(whole))

    def head(self, channels: int, num_classes: int) -> nn.Module:
        return nn.Sequential(
            OrderedDict(
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                dropout=nn.Dropout(self.dropout),
                linear=nn.Linear(channels, num_classes),
            )
        )


_SLOW_NORM = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)
_NETWORKS = (
    _EfficientNet(Fraction("1.0"), Fraction("1.0"), dropout=0.2),
    _EfficientNet(Fraction("1.0"), Fraction("1.1"), dropout=0.2),
    _EfficientNet(Fraction("1.1"), Fraction("1.2"), dropout=0.3),
    _EfficientNet(Fraction("1.2"), Fraction("1.4"), dropout=0.3),
    _EfficientNet(Fraction("1.4"), Fraction("1.8"), dropout=0.4),
    _EfficientNet(Fraction("1.6"), Fraction("2.2"), dropout=0.4, norm=_SLOW_NORM),
    _EfficientNet(Fraction("1.8"), Fraction("2.6"), dropout=0.5, norm=_SLOW_NORM),
    _EfficientNet(Fraction("2.0"), Fraction("3.1"), dropout=0.5, norm=_SLOW_NORM),
)
ARCHITECTURES = tuple(
    FunctionalArchitecture(
        f"efficientnet_b{i}", network.base, network.blocks, network.head, kaiming_fan_out, network.channels, _MBConv
    )
    for i, network in enumerate(_NETWORKS)
)
