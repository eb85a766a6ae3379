"""The architectures of a module and of a function that returns modules, from what a user passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from oekd_fast.models.any_network.inspection import check_images, check_network
from oekd_fast.models.any_network.module_architecture import ModuleArchitecture
from oekd_fast.models.any_network.scaling import Start
from oekd_fast.models.any_network.sources import FactoryNetworks, ScaledNetworks, copies_of
from oekd_fast.models.scaling import Width


def architecture_of_module(
    module: nn.Module,
    example_inputs: Any,
    *,
    base: str | None = None,
    blocks: Sequence[str] | None = None,
    start: Start = "slice",
) -> ModuleArchitecture:
    """Return the architecture of `module`, which it keeps and copies for each student.

    The arguments and errors are those of `StudentEnsemble.from_module`.
    """
    images = check_network(module, example_inputs)
    source = ScaledNetworks(copies_of(module), images, start)
    return ModuleArchitecture(type(module).__name__, source, images, base=base, blocks=blocks)


def architecture_of_factory(
    factory: Callable[[Width], nn.Module],
    example_inputs: Any,
    *,
    base: str | None = None,
    blocks: Sequence[str] | None = None,
) -> ModuleArchitecture:
    """Return the architecture of the networks that `factory` builds.

    The arguments and errors are those of `StudentEnsemble.from_factory`.
    """
    if not callable(factory):
        raise TypeError(f"factory: expected a function that takes a Width, got {type(factory).__name__}")
    images = check_images(example_inputs)
    source = FactoryNetworks(factory)
    network = source.largest()
    check_network(network, images)
    return ModuleArchitecture(type(network).__name__, source, images, base=base, blocks=blocks)
