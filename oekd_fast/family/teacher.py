"""A network that is not trained and that students learn from."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from oekd_fast.data import normalise
from oekd_fast.family.ensemble import Student
from oekd_fast.family.saved import load_student

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


class Teacher(nn.Module):
    """A student's logits and maps, in evaluation mode and without gradients, of pixels as they are in a data set.

    Args:
        network: base and branch; held, not copied.
        statistics: mean and standard deviation a channel that it was trained with, for pixels in [0, 1].
        channels: of its map after each block.
        num_classes, in_channels: of its logits and images.
    """

    def __init__(
        self, network: Student, statistics: Statistics, channels: tuple[int, ...], num_classes: int, in_channels: int
    ) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.channels, self.num_classes, self.in_channels = channels, num_classes, in_channels
        mean, std = (torch.tensor(values, dtype=torch.float32) for values in statistics)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    @classmethod
    def load(cls, path: Path) -> Teacher:
        """A saved student; errors as `load_student`."""
        network = load_student(path)
        facts = network.metadata
        return cls(
            network,
            (facts.normalisation.mean, facts.normalisation.std),
            tuple(facts.widths),
            facts.num_classes,
            facts.in_channels,
        )

    def check_fits(self, num_classes: int, in_channels: int, name: str) -> None:
        """Raise ValueError unless it knows the classes and takes the images of a data set."""
        for what, own, given in (
            ("classes", self.num_classes, num_classes),
            ("channels of images", self.in_channels, in_channels),
        ):
            if own != given:
                raise ValueError(f"teacher: expected {given} {what}, as the data set has, got {own} in {name}")

    @torch.no_grad()
    def forward(self, images: Tensor, memory_format: torch.memory_format) -> tuple[Tensor, tuple[Tensor, ...]]:
        """uint8 [B, C, H, W] to logits [B, classes] and the maps [B, C_b, H_b, W_b] after each block."""
        images = normalise(images, self.mean, self.std, memory_format=memory_format)
        return self.network.branch(self.network.base(images))
