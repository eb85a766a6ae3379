"""Augmentation, cropping and normalisation of a batch, in training and in evaluation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from oekd_fast.common.part import Part
from oekd_fast.data import AnyAugmentation, augment, centre, normalising, scale_and_shift
from oekd_fast.family.teacher import Statistics

_SIZE_STEP = 4  # pixels


class Preprocessing:
    """Augments, crops and normalises batches on their device.

    Args:
        augmentation: random changes to training images, and the crop that evaluation uses.
        normalisation: mean and standard deviation of each channel, for pixels in [0, 1].
        memory_format: memory format of the normalised images.
    """

    def __init__(
        self,
        augmentation: AnyAugmentation,
        normalisation: Statistics,
        memory_format: torch.memory_format,
        device: torch.device,
    ) -> None:
        self.memory_format = memory_format
        self._augmentation = augmentation
        self._scale, self._shift = normalising(*(torch.tensor(values, device=device) for values in normalisation))

    def augmented(self, images: Tensor, generator: torch.Generator, part: Part, mirror: Tensor | None = None) -> Tensor:
        """Return randomly augmented pixels of `part` of a batch; uint8 [B, C, H, W] to uint8 [B, C, h, w].

        Args:
            mirror: whether to flip each image, bool [B]; None flips at random if the augmentation has flips.
        """
        return augment(images, self._augmentation, generator, part, mirror)

    def centred(self, images: Tensor) -> Tensor:
        """Return the centre that evaluation uses; uint8 [B, C, H, W] to uint8 [B, C, h, w]."""
        return centre(images, self._augmentation)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Return the input of the networks; uint8 [B, C, h, w] to float32 in `memory_format`."""
        return scale_and_shift(pixels, self._scale, self._shift, memory_format=self.memory_format)

    def resized(self, images: Tensor, side: float) -> Tensor:
        """Return normalised images with about the share `side`, in (0, 1], of their height and width.

        Both become multiples of 4 pixels, as in Composer's progressive resizing, by bilinear interpolation of what the
        pixels of the result cover.
        """
        if side == 1:
            return images
        steps = [max(1, round(side * length / _SIZE_STEP)) for length in images.shape[2:]]
        size = [min(length, n * _SIZE_STEP) for length, n in zip(images.shape[2:], steps, strict=True)]
        smaller = interpolate(images, size, mode="bilinear", antialias=True)
        return smaller.contiguous(memory_format=self.memory_format)
