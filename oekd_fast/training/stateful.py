"""The parts that a training step changes. A capture restores their tensors, a checkpoint saves their states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from oekd_fast.data import Batches


class Stateful(Protocol):
    """A part of the training that a step changes: the weights, the optimizer, the schedule and so on."""

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor that a step changes in place, by name. A captured step depends on their addresses."""
        ...

    def state_dict(self) -> Any:
        """Return the state for a checkpoint: tensors, numbers, strings and None in lists, tuples and dicts."""
        ...

    def load_state_dict(self, state: Any) -> None:
        """Continue from what `state_dict` returned."""
        ...


Parts = Mapping[str, Stateful | None]  # by their names in a checkpoint; None for a part that this training lacks


class ModuleState:
    """The parameters and buffers of a module as a `Stateful` part."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def tensors(self) -> dict[str, Tensor]:
        return module_tensors(self._module)

    def state_dict(self) -> dict[str, Tensor]:
        return self._module.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._module.load_state_dict(state)


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers in the state dict of `module`, which itself may hold copies without padding."""
    tensors = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    return {name: tensors[name] for name in module.state_dict() if name in tensors}


def part_tensors(parts: Parts) -> dict[str, Tensor]:
    """Return the tensors of all parts, named "part.tensor"."""
    return {
        f"{part}.{name}": tensor
        for part, stateful in parts.items()
        if stateful is not None
        for name, tensor in stateful.tensors().items()
    }


def batch_tensors(batches: Batches | None) -> dict[str, Tensor]:
    """Return the tensors that taking a batch changes. A checkpoint saves the position in the epoch instead of them."""
    return {} if batches is None else {f"batches.{i}": tensor for i, tensor in enumerate(batches.state())}


def part_states(parts: Parts) -> dict[str, Any]:
    """Return the state dict of every part, None for a part that is None."""
    return {name: None if part is None else part.state_dict() for name, part in parts.items()}


def load_part_states(parts: Parts, states: Mapping[str, Any]) -> None:
    """Load what `part_states` returned for the same parts."""
    for name, part in parts.items():
        if part is not None:
            part.load_state_dict(states[name])
