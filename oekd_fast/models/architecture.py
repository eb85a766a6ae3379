"""The interface of an architecture that can be trained as a family of students."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from typing import Protocol, runtime_checkable

from torch import nn

from oekd_fast.common.width_rule import WidthRule

# The default of `StudentEnsemble.from_module`, which has no effect on networks with fewer channels.
_USUAL_DIVISOR = 8


@runtime_checkable
class Architecture(Protocol):
    """A network that is cut into a base, which all students share, and one branch per student.

    `FunctionalArchitecture` implements the interface with three functions. To add a network to the package, define it
    in a module of its own and list it in `registry.py`.
    """

    @property
    def name(self) -> str:
        """The name under which the architecture is registered."""
        ...

    @property
    def block_type(self) -> type[nn.Module]:
        """Type of the module that branches repeat, which `compile_blocks` compiles."""
        ...

    def build_base(self, in_channels: int) -> nn.Module:
        """Build the shared base, from images [B, in_channels, H, W] to a feature map [B, C, H', W']."""
        ...

    def build_branch(self, j: int, n: int, num_classes: int) -> nn.Module:
        """Build the branch of student `j` of `n`, counted from 0; student 0 has full width.

        The branch returns `(logits, maps)` for the output of the base: logits [B, num_classes] and one feature map
        [B, C_b, H_b, W_b] per block, with C_b = `map_channels(j, n)[b]`. H_b and W_b are the same for all students.
        """
        ...

    def map_channels(self, j: int, n: int) -> tuple[int, ...]:
        """Return the number of channels of each feature map of student `j` of `n`, one entry per block."""
        ...


@runtime_checkable
class ScalableArchitecture(Architecture, Protocol):
    """An architecture that can be asked for the same network with other widths of its students."""

    @property
    def width_rule(self) -> WidthRule:
        """The shares and the divisor that `build_branch` and `map_channels` follow."""
        ...

    def with_widths(self, rule: WidthRule) -> ScalableArchitecture:
        """Return the architecture, under the same name, whose students have the channels of `rule`."""
        ...


def width_rule_of(architecture: Architecture) -> WidthRule:
    """Return the shares and the divisor of `architecture`; those of the paper if it does not say any."""
    return architecture.width_rule if isinstance(architecture, ScalableArchitecture) else WidthRule()


def with_widths(
    architecture: Architecture, widths: Sequence[Real] | None = None, width_divisor: int | None = None
) -> Architecture:
    """Return `architecture` with other shares or another divisor; None keeps its own.

    Args:
        widths: share of the channels that each student keeps, as `WidthRule` takes them.
        width_divisor: divisor of channels, as `WidthRule` takes it.

    Raises:
        TypeError: a value has the wrong type, or `architecture` has no `with_widths`.
        ValueError: `WidthRule` does not accept the values, or `width_divisor` is larger than 8 and than the channels of
            every block of student 1.
    """
    given = {"shares": widths, "divisor": width_divisor}
    rule = replace(width_rule_of(architecture), **{name: value for name, value in given.items() if value is not None})
    if rule == width_rule_of(architecture):
        return architecture
    if not isinstance(architecture, ScalableArchitecture):
        name = "widths" if widths is not None else "width_divisor"
        raise TypeError(
            f"{name}: {architecture.name} has widths of its own; expected None, or an architecture with "
            f"with_widths(rule), got {type(architecture).__name__}"
        )
    scaled = architecture.with_widths(rule)
    most = max(scaled.map_channels(0, 1 if rule.shares is None else len(rule.shares)), default=rule.divisor)
    if rule.divisor > max(most, _USUAL_DIVISOR):
        raise ValueError(
            f"width_divisor: expected at most {most}, the largest number of channels of {architecture.name}, "
            f"got {rule.divisor}"
        )
    return scaled
