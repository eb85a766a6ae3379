"""The branch of a student of any network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from oekd_fast.models.any_network.map_views import as_map
from oekd_fast.models.functional import Branch


class NetworkBranch(Branch):
    """A `Branch` whose stages may pass tokens [B, T, C] or maps [B, H, W, C] on.

    Args:
        stages: modules that run one after the other; the first takes the map of the base.
        classifier: takes what the last stage returns; -> logits [B, num_classes].
        axes: dimension of the channels of what each stage returns. The maps [B, C, H, W] of `forward` are views of it.
    """

    def __init__(self, stages: Sequence[nn.Module], classifier: nn.Module, axes: Sequence[int]) -> None:
        super().__init__(stages, classifier)
        self.axes = tuple(axes)

    @property
    def passes_maps(self) -> bool:
        """Whether the channels of what each block returns are at dimension 1, as those of its map."""
        return all(axis == 1 for axis in self.axes)

    def map_of(self, b: int, x: Tensor) -> Tensor:
        """Return the map of block `b` for what its stage returned."""
        return as_map(x, self.axes[b])
