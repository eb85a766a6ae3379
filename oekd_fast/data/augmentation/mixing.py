"""Mixup and CutMix of a whole batch on its own device, without host synchronisation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from oekd_fast.data.augmentation.settings import Mixing


def mix(
    images: Tensor, labels: Tensor, num_classes: int, mixing: Mixing, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mix each image with its neighbour in the batch, and its label with that of the neighbour.

    Rows 0 and 1 are neighbours, rows 2 and 3, and so on; the last of an odd number of rows is mixed with the one before
    it. Batches are drawn at random, so that the neighbour of an image is a random one. All images of a batch share one
    ratio lambda, the share of the image itself.

    Args:
        images: uint8 [B, C, H, W].
        labels: int64 [B]. A label outside [0, `num_classes`) makes its rows NaN.
        num_classes: number of classes.
        mixing: options.
        generator: random generator on the device of `images`; every call draws five numbers, whatever the options.

    Returns:
        The mixed images, uint8 [B, C, H, W], whose values are rounded, and the probabilities of the classes, float32
        [B, num_classes].
    """
    rows = torch.arange(len(images), device=images.device)
    neighbour = torch.where((rows ^ 1) < len(rows), rows ^ 1, rows - 1).clamp_(min=0)
    own_share, ratio = draw_shares(*images.shape[2:], mixing, generator)
    mixed = images[neighbour].float()
    # The ends of lerp are exact, so that CutMix changes no pixel.
    mixed.lerp_(images.float(), own_share).round_()
    classes = _one_hot(labels, num_classes)
    return mixed.to(torch.uint8), torch.lerp(classes[neighbour], classes, ratio)


def draw_shares(height: int, width: int, mixing: Mixing, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw how the images of a batch are mixed.

    Returns:
        The share of the image itself in each pixel, float32 [H, W], and in the whole image, lambda, a scalar.
    """
    first, second, choice, y, x = torch.rand(5, generator=generator, device=generator.device).unbind()
    if mixing.mixup is None or mixing.cutmix is None:
        cuts = torch.full_like(choice, mixing.mixup is None, dtype=torch.bool)
        alpha = torch.full_like(choice, mixing.cutmix if mixing.mixup is None else mixing.mixup)
    else:
        cuts = choice < 0.5
        alpha = torch.where(cuts, float(mixing.cutmix), float(mixing.mixup))
    ratio = symmetric_beta(alpha, first, second)
    kept = ~_box(height, width, ratio, y, x)
    own_share = torch.where(cuts, kept.float(), ratio)
    return own_share, torch.where(cuts, kept.float().mean(), ratio)


def symmetric_beta(alpha: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Return a draw of Beta(alpha, alpha), made from two draws `u` and `v` of the uniform distribution on [0, 1).

    T = sqrt(2 alpha (u^(-1 / alpha) - 1)) cos(2 pi v) has Student's t distribution with 2 alpha degrees of freedom
    (Bailey 1994, "Polar generation of random variates with the t-distribution"), and (1 + T / sqrt(2 alpha + T^2)) / 2
    has the distribution Beta(alpha, alpha).

    Args:
        alpha, u, v: floating, of the same shape.
    """
    cosine = torch.cos(2 * math.pi * v)
    squares = torch.expm1(-torch.log(u) / alpha) * cosine.square()  # T^2 / (2 alpha), which may be infinite
    return 0.5 + 0.5 * cosine.sign() / (1 + 1 / squares).sqrt()


def _box(height: int, width: int, ratio: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Return the box that CutMix replaces, as bool [H, W]: sides of sqrt(1 - lambda) of the image's, around a uniform
    centre, cut off at the edges of the image."""
    side = (1 - ratio).sqrt()

    def inside(length: int, centre: Tensor) -> Tensor:
        positions = torch.arange(length, device=ratio.device)
        middle, half = (centre * length).floor(), (side * length).floor().div(2, rounding_mode="floor")
        return (positions >= middle - half) & (positions < middle + half)

    return inside(height, y)[:, None] & inside(width, x)[None, :]


def _one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Return float32 [B, num_classes], and NaN for labels out of range, which an index would not find on the device."""
    classes = torch.arange(num_classes, device=labels.device)
    known = (labels >= 0) & (labels < num_classes)
    return torch.where(known[:, None], (labels[:, None] == classes).float(), torch.nan)
