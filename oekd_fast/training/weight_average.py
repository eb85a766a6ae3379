"""An exponential moving average of a family's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from oekd_fast.family.ensemble import StudentEnsemble


class WeightAverage:
    """`ensemble` holds the average of the weights and of BatchNorm's statistics; it is always in evaluation mode."""

    def __init__(self, source: StudentEnsemble) -> None:
        self._source = source
        self.ensemble = copy.deepcopy(source).requires_grad_(False).eval()
        pairs = list(zip(_tensors(self.ensemble), _tensors(source), strict=True))
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, share: Tensor) -> None:
        """average += share * (weights - average); `share` is a scalar on the device."""
        averages, weights = map(list, zip(*self._averaged, strict=True))
        change = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(change, share)
        torch._foreach_add_(averages, change)
        for average, count in self._copied:
            average.copy_(count)


def _tensors(module: StudentEnsemble) -> list[Tensor]:
    return [*(parameter.detach() for parameter in module.parameters()), *module.buffers()]
