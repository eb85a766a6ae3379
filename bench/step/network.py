"""The family in plain PyTorch, which the baselines train and whose operations bench.model.step_cost counts.

CIFAR ResNets and DenseNets of plain modules. They do not use oekd_fast.models, so that optimisations there do not speed
up the baselines. Parameters and buffers have the names and the order of StudentEnsemble's.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch.nn.functional as F
from torch import Tensor, nn

from oekd_fast.family.ensemble import EnsembleOutput, StudentEnsemble

from .dense_network import DenseBranch


class PlainFamily(nn.Module):
    """A family of plain modules with the weights of `family`, on its device."""

    def __init__(self, family: StudentEnsemble) -> None:
        super().__init__()
        widths = [family.architecture.map_channels(j, family.num_students) for j in family.members]
        dense = isinstance(family.base, nn.Conv2d)
        self.base, branches = dense_parts(family) if dense else residual_parts(family, widths)
        self.branches = nn.ModuleList(branches)
        blocks = list(zip(*widths, strict=True)) if len(widths) > 1 else []
        self.adapters = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(width, teacher, 1) for width in narrow) for teacher, *narrow in blocks
        )
        self.load_state_dict(family.state_dict())

    def forward(self, images: Tensor) -> EnsembleOutput:
        shared = self.base(images)
        outputs = [branch(shared) for branch in self.branches]
        return EnsembleOutput(tuple(logits for logits, _ in outputs), tuple(maps for _, maps in outputs))

    def network_parameters(self) -> Iterator[nn.Parameter]:
        return chain(self.base.parameters(), self.branches.parameters())

    def adapter_parameters(self) -> Iterator[nn.Parameter]:
        return self.adapters.parameters()


def residual_parts(family: StudentEnsemble, widths: list[tuple[int, ...]]) -> tuple[nn.Module, list[nn.Module]]:
    """Return the base and the branches of a CIFAR ResNet."""
    depth = len(family.branches[0].stages[0])
    base = nn.Sequential(conv3x3(family.in_channels, 16), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
    return base, [Branch(width, depth, family.num_classes) for width in widths]


def dense_parts(family: StudentEnsemble) -> tuple[nn.Module, list[nn.Module]]:
    """Return the base, a single convolution, and the branches of a CIFAR DenseNet-BC."""
    channels = family.base.weight.shape[0]
    branches: list[nn.Module] = []
    for branch in family.branches:
        *first, last = branch.stages
        layers = (*(len(stage.block) for stage in first), len(last))
        branches.append(DenseBranch(channels, last[0].conv2.weight.shape[0], layers, family.num_classes))
    return conv3x3(family.in_channels, channels), branches


def feature_loss(family: PlainFamily, features: tuple[tuple[Tensor, ...], ...]) -> Tensor | float:
    """Return the intermediate loss, summed over all blocks and students."""
    return sum(
        F.mse_loss(adapter(student[block]), features[0][block].detach())
        for block, adapters in enumerate(family.adapters)
        for adapter, student in zip(adapters, features[1:], strict=True)
    )


class Branch(nn.Module):
    """One student after the shared base: three stages and a classifier."""

    def __init__(self, widths: tuple[int, ...], depth: int, classes: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        width = 16
        for number, next_width in enumerate(widths):
            blocks = [Block(width, next_width, stride=1 if number == 0 else 2)]
            blocks += [Block(next_width, next_width, stride=1) for _ in range(depth - 1)]
            self.stages.append(nn.Sequential(*blocks))
            width = next_width
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1)), tuple(maps)


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv3x3(inputs, width, stride), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = conv3x3(width, width), nn.BatchNorm2d(width)
        self.shortcut = nn.Identity() if stride == 1 and inputs == width else Shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x), inplace=True)


class Shortcut(nn.Module):
    """A 1x1 convolution and BatchNorm, where a block changes its width or its stride."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride, self.conv, self.norm = stride, nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        # Slicing replaces the stride: oneDNN computes it wrongly in channels_last (uxlfoundation/oneDNN issue 6035).
        return self.norm(self.conv(x[:, :, :: self.stride, :: self.stride]))


def conv3x3(inputs: int, width: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
