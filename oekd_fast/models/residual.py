"""Residual blocks of ResNets (He et al. 2016; Xie et al. 2017)."""

from collections.abc import Callable

from torch import Tensor, nn

from oekd_fast.layers.direct_conv import conv3x3
from oekd_fast.layers.fast_module import FastModule


class BasicBlock(FastModule):
    """Two 3x3 convolutions and a shortcut: [B, in_width, H, W] -> [B, width, H / stride, W / stride]."""

    keeps_zero_channels = True

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_width, width, stride)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(in_width, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.run_norm_relu(self.norm1, self.run_conv(self.conv1, x))
        return self.run_norm_relu(self.norm2, self.run_conv(self.conv2, out), self.shortcut(x))


class Bottleneck(FastModule):
    """A 1x1, a grouped 3x3 and a 1x1 convolution and a shortcut: [B, in_width, H, W] -> [B, 4 planes, H', W'].

    The 3x3 convolution has the stride, and max(1, int(planes * base_width / 64)) channels per group.
    """

    EXPANSION = 4
    keeps_zero_channels = True

    def __init__(self, in_width: int, planes: int, stride: int, groups: int, base_width: int) -> None:
        super().__init__()
        inner, width = max(1, planes * base_width // 64) * groups, planes * self.EXPANSION
        self.conv1 = nn.Conv2d(in_width, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, width, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(in_width, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.run_norm_relu(self.norm1, self.conv1(x))
        out = self.run_norm_relu(self.norm2, self.conv2(out))
        return self.run_norm_relu(self.norm3, self.conv3(out), self.shortcut(x))


class _Projection(FastModule):
    """A 1x1 convolution with a stride, and BatchNorm."""

    keeps_zero_channels = True

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(in_width, width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.run_norm(self.norm, self.run_conv(self.conv, x, every=self.stride))


def _shortcut(in_width: int, width: int, stride: int) -> nn.Module:
    same = stride == 1 and in_width == width
    return nn.Identity() if same else _Projection(in_width, width, stride)


def residual_stage(
    block: Callable[[int, int], nn.Module], in_width: int, width: int, count: int, stride: int
) -> nn.Sequential:
    """Build `count` blocks of `width` output channels by `block(in_channels, stride)`; the first has the stride."""
    return nn.Sequential(block(in_width, stride), *(block(width, 1) for _ in range(count - 1)))
