"""Architectures made of plain functions, the building blocks of their branches, and shared initialisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from oekd_fast.common.meta_copy import meta_copy
from oekd_fast.common.width_rule import WidthRule
from oekd_fast.layers.scripting import Unscriptable
from oekd_fast.models.in_place import call_on_shared
from oekd_fast.models.scaling import Width


@dataclass(frozen=True)
class FunctionalArchitecture:
    """A network that is cut into a base, blocks and a head; implements `ScalableArchitecture`.

    Args:
        name: name of the network in saved students and reports.
        base: `base(in_channels)` builds the part that all students share: images [B, in_channels, H, W] -> map.
        blocks: `blocks(width)` builds the modules that follow, which run one after the other: map -> map
            [B, C_b, H_b, W_b]. `width(64)` is the student's share of 64 channels, int(64 r) unless `width_rule` rounds
            it, and `width.ratio` is r. The number of blocks and the sizes of their maps have to be the same for every
            width.
        head: `head(channels, num_classes)` builds the classifier: last map -> logits [B, num_classes]. It may be
            ``torch.nn.Linear`` itself, which then receives the average of the map over height and width.
        initialise: function applied to every module of base and branch, or None.
        channels: `channels(width)` returns the channels of the map of each block. If None, they are found by running
            the network on the meta device.
        block_type: type of the modules that `compile_blocks` compiles.
        image_shape: (C, H, W) of an image that the network accepts, for that run.
        width_rule: shares of the channels of all students and divisor of channels; the paper's by default.
    """

    name: str
    base: Callable[[int], nn.Module]
    blocks: Callable[[Width], Sequence[nn.Module]]
    head: Callable[[int, int], nn.Module]
    initialise: Callable[[nn.Module], None] | None = None
    channels: Callable[[Width], tuple[int, ...]] | None = None
    block_type: type[nn.Module] = nn.Sequential
    image_shape: tuple[int, int, int] = (3, 32, 32)
    width_rule: WidthRule = field(default_factory=WidthRule)

    def build_base(self, in_channels: int) -> nn.Module:
        """Build the base for images of `in_channels` channels."""
        return self._initialised(self.base(in_channels))

    def build_branch(self, j: int, n: int, num_classes: int) -> nn.Module:
        """Build the blocks and the head of student `j` of `n`."""
        channels = self.map_channels(j, n)
        return self._initialised(Branch(self.blocks(self._width(j, n)), self.head(channels[-1], num_classes)))

    def map_channels(self, j: int, n: int) -> tuple[int, ...]:
        """Return the channels of the map of each block.

        Raises:
            ValueError: `channels` is None, and there are no blocks or one does not return a map [B, C, H, W].
        """
        width = self._width(j, n)
        return _find_channels(self, width) if self.channels is None else self.channels(width)

    def with_widths(self, rule: WidthRule) -> FunctionalArchitecture:
        """Return this network with students of the channels of `rule`."""
        return replace(self, width_rule=rule)

    def _width(self, j: int, n: int) -> Width:
        return Width(j, n, self.width_rule)

    def _initialised(self, module: nn.Module) -> nn.Module:
        return module if self.initialise is None else module.apply(self.initialise)


class Branch(Unscriptable, nn.Module):
    """Stages that run one after the other, and a classifier of the map of the last stage.

    A classifier that is a ``torch.nn.Linear`` receives the average of the map over height and width.
    """

    def __init__(self, stages: Sequence[nn.Module], classifier: nn.Module) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.pool = GlobalAverage() if type(classifier) is nn.Linear else nn.Identity()
        self.classifier = classifier

    @property
    def passes_maps(self) -> bool:
        """Whether the map of each block is what the next block receives."""
        return True

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the logits [B, num_classes] and the map after each stage, for the output of the base.

        Raises:
            InPlaceError: a stage changes the output of the base or a map that is returned.
        """
        maps = []
        for b, stage in enumerate(self.stages):
            x = call_on_shared(stage, x, f"blocks[{b}]")
            maps.append(self.map_of(b, x))
        return call_on_shared(self._classify, x, "head"), tuple(maps)

    def map_of(self, b: int, x: Tensor) -> Tensor:
        """Return the map [B, C_b, H_b, W_b] of block `b` for what its stage returned."""
        return x

    def _classify(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(x))


class GlobalAverage(nn.Module):
    """Average over height and width: [B, C, H, W] -> [B, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


def kaiming_fan_out(module: nn.Module) -> None:
    """Initialise a convolution from a normal distribution with std sqrt(2 / (k_h k_w C_out)) (He et al. 2015).

    Other modules keep the initialisation of PyTorch.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


@lru_cache(maxsize=1024)
@torch.no_grad()
def _find_channels(architecture: FunctionalArchitecture, width: Width) -> tuple[int, ...]:
    with torch.device("meta"):
        # Copies, because the functions may return modules that exist and have weights.
        base = meta_copy(architecture.base(architecture.image_shape[0]))
        blocks = [meta_copy(block) for block in architecture.blocks(width)]
        x = base.eval()(torch.empty(1, *architecture.image_shape))
    channels = []
    for b, block in enumerate(blocks):
        x = block.eval()(x)
        if not isinstance(x, Tensor) or x.ndim != 4:
            got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"{architecture.name}: block {b}: expected a map [B, C, H, W], got {got}")
        channels.append(x.shape[1])
    if not channels:
        raise ValueError(f"{architecture.name}: blocks: expected at least one module, got none")
    return tuple(channels)
