"""Random resized crops of a whole batch on its own device: fixed shapes, one draw, no host synchronisation."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from oekd_fast.data.augmentation.settings import ResizedCrop

# Parts drawn for each image until one lies inside of it, as torchvision does; all of them at once.
TRIES = 10


class Boxes(NamedTuple):
    """A part of each image, in whole pixels: int64 [B] each."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


def resized_crop(images: Tensor, augmentation: ResizedCrop, generator: torch.Generator) -> Tensor:
    """A random part of each image, resized.

    Args:
        images: uint8 [B, C, H, W].
        augmentation: see `ResizedCrop`.
        generator: on the device of `images`; gives one draw a call.

    Returns:
        uint8 [B, C, size, size].
    """
    boxes, mirror = draw_boxes(len(images), *images.shape[2:], augmentation, generator)
    return resample(images, boxes, mirror, augmentation.size)


def draw_boxes(
    count: int, height: int, width: int, augmentation: ResizedCrop, generator: torch.Generator
) -> tuple[Boxes, Tensor]:
    """The parts of `count` images of height x width, and whether to mirror each (bool [B]).

    Where none of `TRIES` parts lies inside the image, the part is all of it.
    """
    draws = torch.rand(2 * TRIES + 3, count, generator=generator, device=generator.device)
    scales, ratios, (top, left, side) = draws.split([TRIES, TRIES, 3])
    smallest, largest = augmentation.scale
    areas = (smallest + (largest - smallest) * scales) * (height * width)
    narrow, wide = (math.log(ratio) for ratio in augmentation.ratio)
    ratios = torch.exp(narrow + (wide - narrow) * ratios)
    heights, widths = (areas / ratios).sqrt().round().long(), (areas * ratios).sqrt().round().long()
    inside = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    # Where all are equal, argmax is the first: with no part inside, its size is replaced.
    first, found = inside.long().argmax(0, keepdim=True), inside.any(0)
    heights = torch.where(found, heights.gather(0, first)[0], height)
    widths = torch.where(found, widths.gather(0, first)[0], width)
    tops, lefts = (top * (height - heights + 1)).long(), (left * (width - widths + 1)).long()
    mirror = side < 0.5 if augmentation.flip else torch.zeros_like(found)
    return Boxes(tops, lefts, heights, widths), mirror


def resample(images: Tensor, boxes: Boxes, mirror: Tensor, size: int) -> Tensor:
    """What `F.interpolate(part, (size, size), mode="bilinear")` makes of each part, rounded: uint8 [B, C, size, size].

    Without an antialiasing filter: stored images are at most 8/7 as large as what is made of them, where it would
    change next to nothing.
    """
    x = _sources(boxes.left, boxes.width, size)
    y = _sources(boxes.top, boxes.height, size)
    x = torch.where(mirror[:, None], x.flip(1), x)
    # grid_sample counts from -1 to 1 over the whole image, edge to edge.
    x, y = (2 * x + 1) / images.shape[3] - 1, (2 * y + 1) / images.shape[2] - 1
    shape = (len(images), size, size)
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=-1)
    sampled = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled.round_().to(torch.uint8)


def _sources(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Where in the image (pixel centres are whole numbers) each of `size` pixels comes from: float32 [B, size]."""
    centres = (torch.arange(size, device=start.device) + 0.5) / size
    offsets = centres * length[:, None] - 0.5
    # Half a pixel at either end lies outside the part, whose last pixel goes on there.
    return start[:, None] + torch.minimum(offsets.clamp(min=0), length[:, None] - 1.0)
