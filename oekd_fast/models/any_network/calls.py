"""An operation of a network as it ran, and what it does to channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map

from oekd_fast.models.any_network.layouts import Layout, Operand


class Unsupported(Exception):
    """There is no rule for an operation, or its arguments fit no rule; the text says why."""


@dataclass(frozen=True)
class Call:
    """An operation of a network, as it ran.

    Args:
        name: its name without namespace and overload, such as "convolution".
        function: the operator.
        args: its positional arguments.
        kwargs: its keyword arguments.
        operands: the tensors among the arguments, by id, in their order.
        outputs: the tensors that it returned.
        where: module, operation and line, for errors.
        width: returns the scaled number of channels.
    """

    name: str
    function: Callable[..., Any]
    args: tuple
    kwargs: dict[str, Any]
    operands: dict[int, Operand]
    outputs: list[Tensor]
    where: str
    width: Callable[[int], int]

    def operand(self, argument: object) -> Operand:
        """Return the operand that is passed as `argument`."""
        return self.operands[id(argument)]

    def tensors(self) -> list[Operand]:
        """Return all operands."""
        return list(self.operands.values())

    def given(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument by its position or name."""
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)

    def everywhere(self, layout: Layout) -> Outcome:
        """Return the outcome in which every output has this layout."""
        return Outcome([layout] * len(self.outputs))

    def moved(self, argument: Tensor, labels: Tensor) -> list[Tensor]:
        """Return the outputs of the operation for `labels`, on the CPU, in the place of `argument`."""

        def replaced(given: object) -> object:
            if given is argument:
                return labels
            return given.cpu() if isinstance(given, Tensor) else given

        args = tree_map(replaced, self.args)
        outputs = self.function(*args, **self.kwargs)
        return [outputs] if isinstance(outputs, Tensor) else list(outputs)

    def concatenated(self, labels: list[Tensor]) -> Tensor:
        """Return the output of a concatenation for `labels` in the place of its list of tensors."""
        return self.function(labels, *self.args[1:], **self.kwargs)


@dataclass(frozen=True)
class Outcome:
    """What an operation does to channels.

    Args:
        layouts: the layouts of the outputs; None for statistics that the network does not use.
        groups: number of groups, of an operation that divides channels into groups.
        fewer: whether a narrower network has fewer groups, rather than thinner ones.
    """

    layouts: list[Layout | None]
    groups: int | None = None
    fewer: bool = False
