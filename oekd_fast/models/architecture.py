"""The interface of an architecture that can be trained as a family of students."""

from typing import Protocol, runtime_checkable

from torch import nn


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
