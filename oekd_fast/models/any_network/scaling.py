"""Copies a network at a smaller width."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn

from oekd_fast.models.any_network.attention import rescale_queries
from oekd_fast.models.any_network.checking import Checking
from oekd_fast.models.any_network.expectation import Expectation
from oekd_fast.models.any_network.following import Modules, evaluated, run
from oekd_fast.models.any_network.recording import Record, record, tensors_of
from oekd_fast.models.any_network.resizing import remaining_rows, resize_attributes, resize_tensors
from oekd_fast.models.any_network.scaling_errors import ScalingError

Start = Literal["slice", "fresh"]
# So many channels that any width below 1 has fewer.
_LARGE = 1 << 20


def scale_module(
    module: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    width: Callable[[int], int],
    *,
    keep: Sequence[str] = (),
    start: Start = "slice",
) -> nn.Module:
    """Return a copy of `module` with `width(channels)` channels in every hidden dimension.

    The module runs once on the example inputs while its channels are followed from operation to operation, so that
    control flow in Python needs no tracing. Channels that are added, multiplied or contracted with one another are
    removed together. The copy then runs too, and every operation is compared with the same operation of the module:
    its sizes, and which channel is where.

    - The channels of the inputs and outputs are kept.
    - Grouped convolutions and group normalisation: fewer groups, or the same number of thinner groups, whichever comes
      closer to the width; depthwise convolutions have fewer groups.
    - Attention: all heads remain and become thinner. Layers as wide as all heads together stay divisible by their
      number.

    Args:
        module: any network that runs in evaluation mode. It is not changed.
        example_inputs: the arguments of a call, such as images [2, 3, H, W].
        width: returns the scaled number of channels, such as a `Width`.
        keep: names of modules the channels of whose outputs are all kept.
        start: "slice" keeps the most important channels and their weights (see `kept_channels`); "fresh" then calls
            `reset_parameters` of every module that has this method.

    Returns:
        The copy, in the mode of the module.

    Raises:
        ScalingError: the module cannot be scaled; the error names module, operation, line and reason.
        ValueError: `keep` names a module that does not exist, or `start` is neither "slice" nor "fresh".
    """
    return scale_noting_rows(module, example_inputs, width, keep=keep, start=start)[0]


def scale_noting_rows(
    module: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    width: Callable[[int], int],
    *,
    keep: Sequence[str] = (),
    start: Start = "slice",
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return what `scale_module` does, and for each parameter and buffer the positions of dimension 0 that remain.

    The arguments and errors are those of `scale_module`. The positions are int64, by the name of the parameter.
    """
    names = dict(module.named_modules(remove_duplicate=False))
    if unknown := [name for name in keep if name not in names]:
        raise ValueError(f"keep: expected names of modules, got {unknown[0]!r}")
    if start not in ("slice", "fresh"):
        raise ValueError(f"start: expected 'slice' or 'fresh', got {start!r}")
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    network = _copied(module)
    recorded = record(network, inputs, width, keep)
    if recorded.removes_channels():
        _narrow(network, inputs, recorded)
    elif width(_LARGE) < _LARGE:
        raise _nothing_to_remove(module, recorded)
    rows = remaining_rows(recorded)
    if start == "fresh":
        for part in network.modules():
            if callable(reset := getattr(part, "reset_parameters", None)):
                reset()
    return network, rows


def _narrow(network: nn.Module, inputs: tuple, recorded: Record) -> None:
    """Remove channels from `network`, and check that it does the same with the others."""
    for name, parameter in network.named_parameters():
        if name not in recorded.layouts and sum(size > 1 for size in parameter.shape) > 1:
            raise ScalingError(name, "it is not used in evaluation mode, so that its channels are not known")
    expectation = Expectation(recorded)
    tensors = tensors_of(network)
    resize_tensors(tensors, recorded)
    resize_attributes(network, expectation.sizes, expectation.groups)
    modules = Modules()
    checking = Checking(expectation.steps, tensors, expectation.layouts, modules)
    with evaluated(network), modules.watched(network), checking:
        run(network, inputs, modules, "a narrower copy fails: ")
    checking.finish()
    rescale_queries(network, recorded, checking.ratios)


def _nothing_to_remove(module: nn.Module, recorded: Record) -> ScalingError:
    channels, where = max(recorded.sets.constants, key=lambda constant: constant[0], default=(0, ""))
    if channels > 1:
        return ScalingError(where, f"it combines {channels} channels with inputs or constants; no others are hidden")
    return ScalingError(type(module).__name__, "it has no hidden channels")


def _copied(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except Exception as error:
        raise ScalingError(type(module).__name__, f"it cannot be copied: {error}") from error
