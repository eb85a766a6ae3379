"""An architecture made from plain functions: all of ours, and any network of the user's own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from oekd_fast.models.scaling import Width


@dataclass(frozen=True)
class FunctionalArchitecture:
    """A network cut into a base, blocks and a head; implements `Architecture`.

    name: what saved students and reports call it.
    base: `base(in_channels)`: images [B, in_channels, H, W] -> one map; the same for every student.
    blocks: `blocks(width)`: what follows, as modules that run one after the other, each map -> map [B, C_b, H_b, W_b].
        `width(64)` is int(64 r), the student's share of 64 channels; `width.ratio` is r. There are as many blocks for
        every width, and the sizes of their maps do not depend on it.
    head: `head(channels, num_classes)`: the last map, of so many channels -> logits [B, num_classes].
    initialise: applied to every module of base and branch, if given.
    channels: `channels(width)`: of the map of each block; if not given, a run without data finds them.
    block_type: what `compile_blocks` compiles.
    image_shape: [C, H, W] of images that the network takes, for that run.
    """

    name: str
    base: Callable[[int], nn.Module]
    blocks: Callable[[Width], Sequence[nn.Module]]
    head: Callable[[int, int], nn.Module]
    initialise: Callable[[nn.Module], None] | None = None
    channels: Callable[[Width], tuple[int, ...]] | None = None
    block_type: type[nn.Module] = nn.Sequential
    image_shape: tuple[int, int, int] = (3, 32, 32)

    def build_base(self, in_channels: int) -> nn.Module:
        """Build the base for images of `in_channels`."""
        return self._initialised(self.base(in_channels))

    def build_branch(self, j: int, n: int, num_classes: int) -> nn.Module:
        """Build the blocks and the head of student `j` of `n`."""
        channels = self.map_channels(j, n)
        return self._initialised(Branch(self.blocks(Width(j, n)), self.head(channels[-1], num_classes)))

    def map_channels(self, j: int, n: int) -> tuple[int, ...]:
        """Return the channels of the map of each block.

        Raises:
            ValueError: where a run finds them: there are no blocks, or one does not return a map [B, C, H, W].
        """
        width = Width(j, n)
        return _find_channels(self, width) if self.channels is None else self.channels(width)

    def _initialised(self, module: nn.Module) -> nn.Module:
        return module if self.initialise is None else module.apply(self.initialise)


class Branch(nn.Module):
    """Stages that run one after the other, and a classifier of the last one's map."""

    def __init__(self, stages: Sequence[nn.Module], classifier: nn.Module) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.classifier = classifier

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Map of the base -> logits [B, num_classes], and the map after each stage."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return self.classifier(x), tuple(maps)


class PooledLinear(nn.Linear):
    """Global average pool and linear layer: [B, C, H, W] -> [B, out_features]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mean(dim=(2, 3)))


@lru_cache(maxsize=1024)
@torch.no_grad()
def _find_channels(architecture: FunctionalArchitecture, width: Width) -> tuple[int, ...]:
    with torch.device("meta"):
        x = architecture.base(architecture.image_shape[0]).eval()(torch.empty(1, *architecture.image_shape))
        blocks = architecture.blocks(width)
    channels = []
    for b, block in enumerate(blocks):
        x = block.eval()(x)
        if not isinstance(x, Tensor) or x.ndim != 4:
            came = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"{architecture.name}: block {b}: expected a map [B, C, H, W], got {came}")
        channels.append(x.shape[1])
    if not channels:
        raise ValueError(f"{architecture.name}: blocks: expected at least one module, got none")
    return tuple(channels)
