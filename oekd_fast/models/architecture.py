"""What an architecture must offer to be trained as a family of students."""

from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class Architecture(Protocol):
    """One network, cut into a base that all students share and a branch for each student.

    `FunctionalArchitecture` implements it from three functions. One of ours: a file of its own, listed in
    `registry.py`.
    """

    @property
    def name(self) -> str:
        """The name under which the architecture is registered."""
        ...

    @property
    def block_type(self) -> type[nn.Module]:
        """What branches repeat: the module that `compile_blocks` compiles."""
        ...

    def build_base(self, in_channels: int) -> nn.Module:
        """Build the shared base: images [B, in_channels, H, W] -> one map [B, C, H', W']."""
        ...

    def build_branch(self, j: int, n: int, num_classes: int) -> nn.Module:
        """Build the branch of student `j` of `n` (from 0; student 0 has full width).

        The branch maps the base's output to `(logits, maps)`: logits [B, num_classes] and one
        feature map [B, C_b, H_b, W_b] for each block, with C_b = `map_channels(j, n)[b]`.
        H_b and W_b are the same for all students.
        """
        ...

    def map_channels(self, j: int, n: int) -> tuple[int, ...]:
        """Return the channels of the feature maps of student `j` of `n`, one entry a block."""
        ...
