"""Convolutions, and groups of channels: whether a narrower network has fewer groups or thinner ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from oekd_fast.models.any_network.channel_sets import FIXED, ChannelSets
from oekd_fast.models.any_network.layouts import Layout, Operand, dims_of


def fewer_groups(groups: int, channels: int, width: Callable[[int], int]) -> bool:
    """Return whether whole groups are removed, rather than the same number of channels from each group.

    What comes closest to `width(groups * channels)` is chosen, and fewer groups if both are as close.

    Args:
        groups: number of groups.
        channels: channels of a group.
        width: returns the scaled number of channels.
    """
    target = width(groups * channels)
    fewer = max(1, round(target / channels)) * channels
    return abs(fewer - target) <= abs(groups * width(channels) - target)


def channel_labels(sets: ChannelSets, operand: Operand, dim: int) -> Tensor:
    """Return the labels along `dim`, `FIXED` where there are none."""
    found = [factor.reshape(-1) for factor in operand.layout.factors if dims_of(factor) == (dim,)]
    for other in found[1:]:
        sets.join(found[0], other)
    return found[0] if found else torch.full((operand.shape[dim],), FIXED)


def fix_beyond(sets: ChannelSets, operand: Operand, dims: Sequence[int]) -> None:
    """Keep all channels whose labels vary along other dimensions than one of `dims`."""
    for factor in operand.layout.factors:
        if dims_of(factor) not in [(d,) for d in dims]:
            sets.fix(factor)


def convolve(
    sets: ChannelSets,
    x: Operand,
    weight: Operand,
    groups: int,
    transposed: bool,
    width: Callable[[int], int],
    where: str,
) -> tuple[Layout, bool]:
    """Join the channels of a convolution without its bias.

    Args:
        sets: the channels.
        x: input [B, in, ...].
        weight: [out, in / groups, ...], or [in, out / groups, ...] if `transposed`.
        groups: number of groups.
        transposed: whether the convolution is transposed.
        width: returns the scaled number of channels.
        where: module and operation, for errors.

    Returns:
        The layout of the output [B, out, ...], and whether whole groups are removed.
    """
    fix_beyond(sets, x, (1,))
    fix_beyond(sets, weight, (0, 1))
    inputs = channel_labels(sets, x, 1).reshape(groups, -1)
    rows, columns = channel_labels(sets, weight, 0), channel_labels(sets, weight, 1)
    given = rows.reshape(groups, -1) if transposed else columns.expand(groups, -1)
    made = columns.expand(groups, -1) if transposed else rows.reshape(groups, -1)
    fewer = groups > 1 and bool((sets.find(inputs) != FIXED).any()) and fewer_groups(groups, inputs.shape[1], width)
    if fewer:
        sets.fix(columns)
        sets.join_rows(inputs)
        sets.join(given if transposed else made, inputs[:, :1])
        made = inputs[:, :1].expand(made.shape) if transposed else made
    else:
        sets.join(given, inputs)
        if groups > 1:
            sets.divide(given if transposed else made, where)
    return Layout((made.reshape(1, -1, *[1] * (len(x.shape) - 2)),)), fewer


def divide_channels(sets: ChannelSets, x: Operand, groups: int, width: Callable[[int], int], where: str) -> bool:
    """Divide the channels of `x` [B, C, ...] into `groups`; return whether whole groups are removed."""
    fix_beyond(sets, x, (1,))
    labels = channel_labels(sets, x, 1).reshape(groups, -1)
    if groups == 1:
        return False
    fewer = bool((sets.find(labels) != FIXED).any()) and fewer_groups(groups, labels.shape[1], width)
    if fewer:
        sets.join_rows(labels)
    else:
        sets.divide(labels, where)
    return fewer
