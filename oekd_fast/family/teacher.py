"""A fixed network that students learn from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oekd_fast.data import normalise
from oekd_fast.family.student import Student

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


class Teacher(nn.Module):
    """A trained network that returns logits and feature maps of uint8 images, without gradients.

    Args:
        network: a `Student`, or any module that takes images [B, C_in, H, W], of the dtype of its first floating-point
            parameter, and returns what `outputs_of` reads. It is not copied; gradients are disabled and evaluation mode
            is set.
        statistics: mean and standard deviation per channel of its training images, for pixels in [0, 1].
        channels: channels of its map after each block; empty if it returns no maps.
        num_classes: number of its logits.
        in_channels: channels of its images.
        image_size: side length in pixels that images are resized to, bilinearly and with antialiasing; None keeps their
            size.
        fingerprint: what a checkpoint records of the teacher; None records nothing.
    """

    def __init__(
        self,
        network: nn.Module,
        statistics: Statistics,
        channels: tuple[int, ...],
        num_classes: int,
        in_channels: int,
        image_size: int | None = None,
        fingerprint: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.channels, self.num_classes, self.in_channels = channels, num_classes, in_channels
        self.image_size, self.fingerprint = image_size, fingerprint
        mean, std = (torch.tensor(values, dtype=torch.float32) for values in statistics)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    @torch.no_grad()
    def forward(self, images: Tensor, memory_format: torch.memory_format) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return logits [B, classes] and the maps [B, C_b, H_b, W_b] of each block for images uint8 [B, C, H, W]."""
        images = normalise(images, self.mean, self.std, memory_format=memory_format)
        size = self.image_size
        if size is not None and images.shape[-2:] != (size, size):
            images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
        if isinstance(self.network, Student):
            return self.network.branch(self.network.base(images))
        dtype = next((p.dtype for p in self.network.parameters() if p.is_floating_point()), images.dtype)
        return outputs_of(self.network(images.to(dtype)))


def outputs_of(result: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the logits and the maps in the result of a network.

    Args:
        result: logits; an object with the attribute `logits`, such as an output of the package transformers; or logits
            and a tuple or list of feature maps.

    Raises:
        TypeError: `result` is something else.
    """
    if isinstance(result, Tensor):
        return result, ()
    if isinstance(getattr(result, "logits", None), Tensor):
        return result.logits, ()
    match result:
        case (Tensor() as logits, (tuple() | list()) as maps) if all(isinstance(each, Tensor) for each in maps):
            return logits, tuple(maps)
    raise TypeError(
        f"expected logits, an output with .logits, or logits and a list of maps, got {type(result).__name__}"
    )
