"""The record of a run of a network: its operations, its channels, and which of them remain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from oekd_fast.models.any_network.channel_sets import ChannelSets
from oekd_fast.models.any_network.following import Following, Modules, evaluated, outputs_of, run
from oekd_fast.models.any_network.layouts import Layout
from oekd_fast.models.any_network.selection import kept_channels
from oekd_fast.models.any_network.steps import Step


@dataclass(frozen=True)
class Record:
    """The record of a run.

    Args:
        sets: the channels.
        steps: the operations.
        layouts: of the parameters and buffers that were read, by name.
        kept: for each label that represents a set, whether its channel remains at the width; bool [labels].
    """

    sets: ChannelSets
    steps: Sequence[Step]
    layouts: Mapping[str, Layout]
    kept: Tensor

    def kept_positions(self, factor: Tensor) -> Tensor:
        """Return which positions of a dimension of a parameter remain, bool [positions]."""
        return self.kept[self.sets.find(factor).reshape(-1)]

    def removes_channels(self) -> bool:
        """Return whether any channel is removed."""
        return not bool(self.kept_positions(torch.arange(len(self.sets))).all())


def record(
    network: nn.Module, inputs: Sequence[Tensor], width: Callable[[int], int], keep: Sequence[str] = ()
) -> Record:
    """Run `network` in evaluation mode and choose the channels that remain.

    Args:
        network: any network.
        inputs: its arguments.
        width: returns the scaled number of channels.
        keep: names of modules the channels of whose outputs all remain.

    Raises:
        ScalingError: the network cannot be scaled.
    """
    tensors, sets, modules = tensors_of(network), ChannelSets(), Modules()
    following = Following(sets, tensors, width, modules)
    with evaluated(network), outputs_of(network, keep) as whole, modules.watched(network), following:
        result = run(network, inputs, modules)
    following.fix((result, whole))
    kept = kept_channels(sets, following.layouts_of_tensors, tensors, width)
    return Record(sets, following.steps, following.layouts_of_tensors, kept)


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers by name."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}
