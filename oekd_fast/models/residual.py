"""Residual blocks (He et al. 2016) of ResNets."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from oekd_fast.norm import NormReLU


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and their shortcut: [B, in_width, H, W] -> [B, width, H / stride, W / stride]."""

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride=stride, padding=1, bias=False)
        self.norm1 = NormReLU(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = NormReLU(width)
        self.shortcut = _shortcut(in_width, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm1(self.conv1(x))
        return self.norm2(self.conv2(out), residual=self.shortcut(x))


class _Projection(nn.Module):
    """1x1 convolution of the given stride, and BatchNorm."""

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(in_width, width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        # Strided by hand: oneDNN's weight gradient of a strided 1x1 convolution of few channels in channels_last
        # writes past its workspace (uxlfoundation/oneDNN issue 6035): wrong results, hangs, crashes. Pooling single
        # pixels, since a slice's gradient would not be channels_last.
        if self.stride > 1:
            x = functional.avg_pool2d(x, kernel_size=1, stride=self.stride)
        return self.norm(self.conv(x))


def _shortcut(in_width: int, width: int, stride: int) -> nn.Module:
    same = stride == 1 and in_width == width
    return nn.Identity() if same else _Projection(in_width, width, stride)


def residual_stage(
    block: Callable[[int, int], nn.Module], in_width: int, width: int, count: int, stride: int
) -> nn.Sequential:
    """`count` blocks of `width` channels; `block(channels, stride)` takes so many, and the first has the stride."""
    return nn.Sequential(block(in_width, stride), *(block(width, 1) for _ in range(count - 1)))
