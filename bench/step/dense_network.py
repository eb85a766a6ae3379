"""DenseNet-BC for CIFAR in plain PyTorch: the base and the branches of a family; see `network`."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DenseBranch(nn.Module):
    """One student after the shared base: dense blocks, of which all but the last have a transition, and a classifier.

    Args:
        channels: Channels of the base.
        growth: Channels that a layer adds.
        layers: Layers of each dense block.
        classes: Number of classes.
    """

    def __init__(self, channels: int, growth: int, layers: tuple[int, ...], classes: int) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for number, count in enumerate(layers):
            block = nn.Sequential(*(DenseLayer(channels + i * growth, growth) for i in range(count)))
            channels += count * growth
            if number + 1 == len(layers):
                stages.append(block)
                break
            stages.append(nn.Sequential(OrderedDict(block=block, transition=transition(channels))))
            channels //= 2
        self.stages = nn.ModuleList(stages)
        self.classifier = nn.Sequential(
            OrderedDict(
                norm=nn.BatchNorm2d(channels),
                relu=nn.ReLU(inplace=True),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                linear=nn.Linear(channels, classes),
            )
        )

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return self.classifier(x), tuple(maps)


class DenseLayer(nn.Module):
    """A bottleneck of 4 x growth channels, whose output is appended to its input."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(F.relu(self.norm1(x), inplace=True))
        return torch.cat((x, self.conv2(F.relu(self.norm2(new), inplace=True))), dim=1)


def transition(channels: int) -> nn.Sequential:
    """Build a transition, which halves the channels, height and width."""
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm2d(channels),
            relu=nn.ReLU(inplace=True),
            conv=nn.Conv2d(channels, channels // 2, 1, bias=False),
            pool=nn.AvgPool2d(2),
        )
    )
