"""Modules of a family that training alone uses, beside its adapters: for each compared student one a block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

Helpers = Literal["none", "critics", "inlets"]


class Critic(nn.Sequential):
    """Tells the teacher's map from a student's: pooled map [B, channels] -> score [B, 1].

    The sigmoid of the score is the probability that the map is the teacher's. There are three linear layers with
    C, C / 2 and C / 4 inputs, as in the release of Shen, He, Xue 2019 (arXiv 1812.02425), whose last layer has two
    scores and a ReLU.
    """

    def __init__(self, channels: int) -> None:
        half, quarter = max(1, channels // 2), max(1, channels // 4)
        super().__init__(
            nn.Linear(channels, half), nn.ReLU(), nn.Linear(half, quarter), nn.ReLU(), nn.Linear(quarter, 1)
        )


def build_helpers(kind: Helpers, adapters: Sequence[Sequence[nn.Conv2d]]) -> nn.ModuleList:
    """Return the modules of each block and compared student; empty for "none".

    Critics are in the order of `adapters`. Inlets are 1x1 convolutions that lead to each block but the first, from the
    teacher's map before it to the channels of the student's map before it: one block fewer than `adapters`.

    Raises:
        ValueError: `kind` is unknown.
    """
    if kind == "none":
        return nn.ModuleList()
    if kind == "inlets":
        return nn.ModuleList(
            nn.ModuleList(nn.Conv2d(a.out_channels, a.in_channels, kernel_size=1) for a in before)
            for before in adapters[:-1]
        )
    if kind != "critics":
        raise ValueError(f"helpers: expected none, critics or inlets, got {kind!r}")
    return nn.ModuleList(nn.ModuleList(Critic(a.out_channels) for a in of_block) for of_block in adapters)
