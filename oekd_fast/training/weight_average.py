"""An exponential moving average of a family's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from oekd_fast.family.ensemble import StudentEnsemble
from oekd_fast.training.stateful import module_tensors


class WeightAverage:
    """Keeps a moving average of `source`'s weights and BatchNorm statistics.

    Attributes:
        ensemble: the averaged family, which is always in evaluation mode and requires no gradients.
    """

    def __init__(self, source: StudentEnsemble) -> None:
        self._source = source
        self.ensemble = copy.deepcopy(source).requires_grad_(False).eval()
        pairs = list(zip(_tensors(self.ensemble), _tensors(source), strict=True))
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, share: Tensor) -> None:
        """Compute average += share * (weights - average); counters are copied.

        Args:
            share: scalar on the device, in [0, 1]; 1 copies all weights.
        """
        averages, weights = map(list, zip(*self._averaged, strict=True))
        change = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(change, share)
        torch._foreach_add_(averages, change)
        if self._copied:
            torch._foreach_copy_(*map(list, zip(*self._copied, strict=True)))

    def tensors(self) -> dict[str, Tensor]:
        return module_tensors(self.ensemble)

    def state_dict(self) -> dict[str, Tensor]:
        return self.ensemble.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.ensemble.load_state_dict(state)


def _tensors(module: StudentEnsemble) -> list[Tensor]:
    return [*(parameter.detach() for parameter in module.parameters()), *module.buffers()]
