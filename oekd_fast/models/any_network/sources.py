"""Sources of the networks of a family: copies of a module, or calls of a function."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from oekd_fast.models.any_network.scaling import Start, scale_noting_rows
from oekd_fast.models.scaling import Width


class Smaller(NamedTuple):
    """A network with fewer channels.

    Args:
        network: the network.
        rows: for parameters of the largest network, the positions of dimension 0 that `network` has, int64. Empty if
            it was not made from the largest network.
    """

    network: nn.Module
    rows: Mapping[str, Tensor]


class NetworkSource(Protocol):
    """Builds the networks of a family; each call returns modules that share nothing with those of other calls.

    Attributes:
        keeps_layers: whether `smaller` takes `keep` into account.
    """

    keeps_layers: bool

    def largest(self) -> nn.Module:
        """Return the network of student 1."""
        ...

    def smaller(self, width: Width, keep: Sequence[str] = ()) -> Smaller:
        """Return the same network with fewer channels.

        Args:
            width: the student's share of channels.
            keep: qualified names of layers whose outputs keep all their channels.
        """
        ...


@dataclass(frozen=True)
class ScaledNetworks:
    """Networks that are scaled along their channel dependencies.

    Args:
        make: returns the largest network, which may be changed.
        images: example images [B, C, H, W].
        start: "slice": smaller networks have the most important channels of the largest one; "fresh": their weights are
            drawn anew.
    """

    make: Callable[[], nn.Module]
    images: Tensor
    start: Start
    keeps_layers = True

    def largest(self) -> nn.Module:
        return self.make()

    def smaller(self, width: Width, keep: Sequence[str] = ()) -> Smaller:
        return Smaller(*scale_noting_rows(self.make(), self.images, width, keep=keep, start=self.start))


@dataclass(frozen=True)
class FactoryNetworks:
    """Networks that a function builds.

    Args:
        factory: `factory(width)` returns the network of one student; `width(64)` is its share of 64 channels.
    """

    factory: Callable[[Width], nn.Module]
    keeps_layers = False

    def largest(self) -> nn.Module:
        return self.smaller(Width(0, 1)).network

    def smaller(self, width: Width, keep: Sequence[str] = ()) -> Smaller:
        network = self.factory(width)
        if not isinstance(network, nn.Module):
            raise TypeError(f"factory: expected a torch.nn.Module, got {type(network).__name__}")
        return Smaller(network, {})


def copies_of(module: nn.Module) -> Callable[[], nn.Module]:
    """Return a function that returns independent copies of `module` as it then is."""
    return partial(copy.deepcopy, module)
