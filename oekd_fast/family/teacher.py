"""A fixed network that students learn from."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from oekd_fast.data import normalise
from oekd_fast.family.ensemble import Student
from oekd_fast.family.saved import load_student

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


class Teacher(nn.Module):
    """A trained student that returns logits and feature maps of uint8 images, without gradients.

    Args:
        network: base and branch. They are not copied; gradients are disabled and evaluation mode is set.
        statistics: mean and standard deviation per channel of its training images, for pixels in [0, 1].
        channels: channels of its map after each block.
        num_classes: number of its logits.
        in_channels: channels of its images.
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
        """Load a saved student as a teacher; raises the errors of `load_student`."""
        network = load_student(path)
        metadata = network.metadata
        return cls(
            network,
            (metadata.normalisation.mean, metadata.normalisation.std),
            tuple(metadata.widths),
            metadata.num_classes,
            metadata.in_channels,
        )

    def check_fits(self, num_classes: int, in_channels: int, name: str) -> None:
        """Raise ValueError unless the teacher has as many classes and image channels as the data set."""
        for what, own, given in (
            ("classes", self.num_classes, num_classes),
            ("channels of images", self.in_channels, in_channels),
        ):
            if own != given:
                raise ValueError(f"teacher: expected {given} {what}, as the data set has, got {own} in {name}")

    @torch.no_grad()
    def forward(self, images: Tensor, memory_format: torch.memory_format) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return logits [B, classes] and the maps [B, C_b, H_b, W_b] of each block for images uint8 [B, C, H, W]."""
        images = normalise(images, self.mean, self.std, memory_format=memory_format)
        return self.network.branch(self.network.base(images))
