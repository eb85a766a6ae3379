"""CIFAR ResNets of 6n + 2 layers (He et al. 2016, section 4.2), scaled as in the paper (arXiv 2011.07449)."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from oekd_fast.direct_conv import DirectConv2d
from oekd_fast.models.scaling import scaled_channels
from oekd_fast.norm import NormReLU

_BASE_CHANNELS = 16
_STAGE_CHANNELS = (16, 32, 64)
_STAGE_STRIDES = (1, 2, 2)


@dataclass(frozen=True)
class CifarResNet:
    """A CIFAR ResNet with `blocks_per_stage` basic blocks in each of its three stages."""

    name: str
    blocks_per_stage: int

    @property
    def block_type(self) -> type[nn.Module]:
        """A basic block: two 3x3 convolutions and their shortcut."""
        return _BasicBlock

    def build_base(self, in_channels: int) -> nn.Module:
        """Build the stem: [B, in_channels, H, W] -> [B, 16, H, W], the same for every student."""
        base = nn.Sequential(
            DirectConv2d(in_channels, _BASE_CHANNELS),
            NormReLU(_BASE_CHANNELS),
        )
        return base.apply(_initialise)

    def build_branch(self, j: int, n: int, num_classes: int) -> nn.Module:
        """Build the three stages and the classifier of student `j` of `n`."""
        return _Branch(self.map_channels(j, n), self.blocks_per_stage, num_classes).apply(_initialise)

    def map_channels(self, j: int, n: int) -> tuple[int, ...]:
        """Return the widths of the three stages of student `j` of `n`."""
        return tuple(scaled_channels(channels, j, n) for channels in _STAGE_CHANNELS)


ARCHITECTURES = tuple(CifarResNet(f"resnet{6 * blocks + 2}", blocks_per_stage=blocks) for blocks in (3, 5, 7, 9, 18))


class _Branch(nn.Module):
    def __init__(self, widths: tuple[int, ...], blocks_per_stage: int, num_classes: int) -> None:
        super().__init__()
        inputs = (_BASE_CHANNELS, *widths[:-1])
        self.stages = nn.ModuleList(
            _stage(in_width, width, blocks_per_stage, stride)
            for in_width, width, stride in zip(inputs, widths, _STAGE_STRIDES, strict=True)
        )
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return self.classifier(x.mean(dim=(2, 3))), tuple(maps)


class _BasicBlock(nn.Module):
    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = DirectConv2d(in_width, width, stride)
        self.norm1 = NormReLU(width)
        self.conv2 = DirectConv2d(width, width)
        self.norm2 = NormReLU(width)
        same = stride == 1 and in_width == width
        self.shortcut = nn.Identity() if same else _Projection(in_width, width, stride)

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


def _stage(in_width: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    rest = (_BasicBlock(width, width, stride=1) for _ in range(blocks - 1))
    return nn.Sequential(_BasicBlock(in_width, width, stride), *rest)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_normal_(module.weight)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
