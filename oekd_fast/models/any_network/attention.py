"""Keeps the scale of attention scores where heads become thinner.

The scores of attention are q k / sqrt(d) for heads of d channels. A narrower copy that computes its scale from its own
channels divides by the root of a smaller d, although a sum over the most important channels is about the old one. The
weights that make q are multiplied by the ratio of both scales, so that a copy that lost only channels of zeros gives
the same scores.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from oekd_fast.models.any_network.layouts import dims_of
from oekd_fast.models.any_network.recording import Record


def rescale_queries(network: nn.Module, recorded: Record, ratios: Mapping[str, float]) -> None:
    """Multiply the weights that make q by the ratio of the scales of the module and its copy.

    Weights outside the module that computes the scores are not changed, because others may read what they make.

    Args:
        network: the copy, whose channels have been removed.
        recorded: the record of the module.
        ratios: for each module, by name, the product of its numbers divided by that of the numbers of its copy.
    """
    queries: dict[str, list[np.ndarray]] = defaultdict(list)
    for step in recorded.steps:
        if step.queries is not None and step.module and not math.isclose(ratios.get(step.module, 1.0), 1.0):
            queries[step.module].append(step.queries)
    for module, found in queries.items():
        ratio = ratios[module] ** (1 / len(found))
        for labels in {labels.tobytes(): torch.from_numpy(labels) for labels in found}.values():
            rows = list(_rows(labels, network, recorded))
            if all(name.startswith(f"{module}.") for name, _, _ in rows):
                for name, d, chosen in rows:
                    parameter = network.get_parameter(name)
                    scales = torch.ones(len(chosen), dtype=torch.float64).masked_fill(chosen, ratio).to(parameter)
                    parameter.data.mul_(scales.reshape([-1 if e == d else 1 for e in range(parameter.ndim)]))


def _rows(labels: Tensor, network: nn.Module, recorded: Record) -> Iterator[tuple[str, int, Tensor]]:
    """Yield the parameters that hold `labels`, the dimension, and which of its positions that remain hold them."""
    for name, _ in network.named_parameters():
        for factor in recorded.layouts[name].factors if name in recorded.layouts else ():
            chosen = torch.isin(factor.reshape(-1), labels)
            if chosen.any():
                yield name, dims_of(factor)[0], chosen[recorded.kept_positions(factor)]
