"""Random resized crops of a whole batch on its own device: fixed shapes, one random draw, no synchronisation."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from oekd_fast.common.part import Part
from oekd_fast.data.augmentation.settings import ResizedCrop

# Boxes drawn per image, all at once; the first that lies inside the image is used. torchvision tries as many.
TRIES = 10


class Boxes(NamedTuple):
    """One box per image, in pixels; every field is int64 [B]."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


def resized_crop(
    images: Tensor,
    augmentation: ResizedCrop,
    generator: torch.Generator,
    part: Part | None = None,
    mirror: Tensor | None = None,
) -> Tensor:
    """Crop a random box from each image and resize it.

    Args:
        images: uint8 [B, C, H, W].
        augmentation: options of the crop.
        generator: random generator on the device of `images`; every call makes one draw.
        part: rows of the whole batch that `images` are; the draw is that of the whole batch. None: all of them.
        mirror: whether to flip each image, bool [B]; None flips as drawn.

    Returns:
        uint8 [B, C, size, size].
    """
    part = part or Part.whole(len(images))
    boxes, drawn = draw_boxes(part.of, *images.shape[2:], augmentation, generator)
    boxes = Boxes(*(field[part.rows] for field in boxes))
    return resample(images, boxes, drawn[part.rows] if mirror is None else mirror, augmentation.size)


def draw_boxes(
    count: int, height: int, width: int, augmentation: ResizedCrop, generator: torch.Generator
) -> tuple[Boxes, Tensor]:
    """Draw a box and a flip (bool [count]) for each of `count` images of `height` x `width` pixels.

    If none of `TRIES` boxes lies inside the image, the box is the whole image.
    """
    draws = torch.rand(2 * TRIES + 3, count, generator=generator, device=generator.device)
    scales, ratios, (top, left, side) = draws.split([TRIES, TRIES, 3])
    smallest, largest = augmentation.scale
    areas = (smallest + (largest - smallest) * scales) * (height * width)
    narrow, wide = (math.log(ratio) for ratio in augmentation.ratio)
    ratios = torch.exp(narrow + (wide - narrow) * ratios)
    heights, widths = (areas / ratios).sqrt().round().long(), (areas * ratios).sqrt().round().long()
    inside = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    # argmax returns the first of equal values. If no box lies inside, the size of the first is replaced below.
    first, found = inside.long().argmax(0, keepdim=True), inside.any(0)
    heights = torch.where(found, heights.gather(0, first)[0], height)
    widths = torch.where(found, widths.gather(0, first)[0], width)
    tops, lefts = (top * (height - heights + 1)).long(), (left * (width - widths + 1)).long()
    mirror = side < 0.5 if augmentation.flip else torch.zeros_like(found)
    return Boxes(tops, lefts, heights, widths), mirror


def resample(images: Tensor, boxes: Boxes, mirror: Tensor, size: int) -> Tensor:
    """Resize a box of each image: `F.interpolate(box, (size, size), mode="bilinear")`, rounded to uint8.

    There is no antialiasing filter: stored images are at most 8/7 as large as the result, where a filter would change
    very little.

    Args:
        images: uint8 [B, C, H, W].
        boxes: box of each image.
        mirror: whether to flip each image horizontally, bool [B].
        size: height and width of the result, in pixels.

    Returns:
        uint8 [B, C, size, size].
    """
    x = _source_positions(boxes.left, boxes.width, size)
    y = _source_positions(boxes.top, boxes.height, size)
    x = torch.where(mirror[:, None], x.flip(1), x)
    # grid_sample expects positions in [-1, 1] from edge to edge of the image.
    x, y = (2 * x + 1) / images.shape[3] - 1, (2 * y + 1) / images.shape[2] - 1
    shape = (len(images), size, size)
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=-1)
    sampled = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled.round_().to(torch.uint8)


def _source_positions(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Return the positions in the image of `size` output pixels, float32 [B, size]; input pixels are at integers."""
    centres = (torch.arange(size, device=start.device) + 0.5) / size
    offsets = centres * length[:, None] - 0.5
    # Positions up to half a pixel outside the box are clamped to its first and last pixel.
    return start[:, None] + torch.minimum(offsets.clamp(min=0), length[:, None] - 1.0)
