"""Chooses how many channels remain, and which."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from oekd_fast.models.any_network.channel_sets import FIXED, ChannelSets, Division
from oekd_fast.models.any_network.layouts import Layout, dims_of
from oekd_fast.models.any_network.scaling_errors import ScalingError


def kept_channels(
    sets: ChannelSets,
    layouts: Mapping[str, Layout],
    tensors: Mapping[str, Tensor],
    width: Callable[[int], int],
) -> Tensor:
    """Choose the channels that remain.

    Channels that occur in the same dimensions of the same parameters form a group, of which `width(size)` remain: those
    with the largest L2 norm over all members of the channel in all parameters ([Li et al. 2017](
    https://arxiv.org/abs/1608.08710), extended to groups by [Fang et al. 2023](https://arxiv.org/abs/2301.12900)).

    Args:
        sets: the channels.
        layouts: layouts of the parameters and buffers, by name.
        tensors: the parameters and buffers.
        width: returns the scaled number of channels.

    Returns:
        For each label that represents a set, whether its channel remains; bool [labels].

    Raises:
        ScalingError: channels are divided into rows that cannot keep the same number of channels.
    """
    places = _places(sets, layouts)
    importance = _importance(places, tensors, len(sets))
    blocks, heads = sets.block_sizes(), _channels_of_heads(sets, width)
    kept = torch.zeros(len(sets), dtype=torch.bool)
    kept[FIXED] = True
    for rows in _groups(sets, places):
        for row in rows:
            block = max(blocks.get(channel, 1) for channel in row)
            if len(rows) == 1 and block == 1 and len(row) in heads:
                count = heads[len(row)]
            else:
                count = max(1, round(width(len(row) * block) / block))
            channels = torch.tensor(row)
            kept[channels[importance[channels].argsort(descending=True, stable=True)[:count]]] = True
    for division in sets.divisions:
        counts = {int(row.sum()) for row in kept[torch.from_numpy(sets.roots(division.rows))]}
        if len(counts) > 1:
            raise ScalingError(division.where, f"its rows of channels would keep {sorted(counts)} in a narrower copy")
    return kept


@dataclass(frozen=True)
class Place:
    """A dimension of a parameter or buffer, and the labels of its positions."""

    tensor: str
    dim: int
    labels: np.ndarray


def _places(sets: ChannelSets, layouts: Mapping[str, Layout]) -> list[Place]:
    return [
        Place(name, dims_of(factor)[0], sets.roots(factor.reshape(-1).numpy()))
        for name, layout in layouts.items()
        for factor in layout.factors
    ]


def _importance(places: Sequence[Place], tensors: Mapping[str, Tensor], count: int) -> Tensor:
    """Return the sum of the squares of the parameters that belong to each channel; float64 [labels]."""
    importance = torch.zeros(count, dtype=torch.float64)
    for place in places:
        tensor = tensors[place.tensor]
        if isinstance(tensor, nn.Parameter) and tensor.is_floating_point() and not tensor.is_meta:
            others = [d for d in range(tensor.ndim) if d != place.dim]
            norms = torch.linalg.vector_norm(tensor.detach().float(), dim=others) if others else tensor.detach()
            importance.index_add_(0, torch.from_numpy(place.labels), norms.cpu().double().square())
    return importance


def _groups(sets: ChannelSets, places: Sequence[Place]) -> list[list[list[int]]]:
    """Return the groups of channels that are not fixed, each divided into rows that keep the same number."""
    occurrences: dict[int, list[int]] = defaultdict(list)
    for index, place in enumerate(places):
        for label in np.unique(place.labels).tolist():
            occurrences[label].append(index)
    occurrences.pop(FIXED, None)
    row_of: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, division in enumerate(sets.divisions):
        for index, row in enumerate(_distinct_rows(sets, division)):
            for label in row:
                row_of[label].append((number, index))
    groups: dict[tuple, dict[tuple, list[int]]] = defaultdict(lambda: defaultdict(list))
    for label in sorted(occurrences):
        groups[tuple(occurrences[label])][tuple(row_of[label])].append(label)
    return [list(rows.values()) for rows in groups.values()]


def _channels_of_heads(sets: ChannelSets, width: Callable[[int], int]) -> dict[int, int]:
    """Return how many channels remain in layers that are as wide as all heads of an attention together, by width.

    A network may compute the channels of a head from the width of its embedding, which it has to divide.
    """
    channels: dict[int, int] = {}
    for division in sets.divisions:
        rows = _distinct_rows(sets, division) if division.heads else []
        if rows:
            total = sum(map(len, rows))
            count = len(rows) * width(len(rows[0]))
            channels[total] = min(count, channels.get(total, count))
    return channels


def _distinct_rows(sets: ChannelSets, division: Division) -> list[frozenset[int]]:
    """Return the rows of channels that are not fixed; rows of the same channels once, none if there is only one."""
    distinct = np.unique(sets.roots(division.rows), axis=0)
    rows = {frozenset(row) - {FIXED} for row in distinct.tolist()} - {frozenset()}
    return sorted(rows, key=min) if len(rows) > 1 else []
