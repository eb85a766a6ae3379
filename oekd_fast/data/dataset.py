"""What a loaded data set is, and the split that holds a share of every class out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from oekd_fast.data.augmentation.settings import AnyAugmentation

# One grey level: a channel that varies less than its own quantisation is constant.
MIN_STD = 1 / 255


class DataError(ValueError):
    """Data that is missing, malformed or inconsistent; the message says which and what was expected."""


class AnySplit(Protocol):
    """Labelled images, in memory or wherever they are: class indices (int64 [N]) are at hand, images are asked for."""

    @property
    def labels(self) -> Tensor: ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """C, H, W."""

    def __len__(self) -> int: ...

    def select(self, indices: Tensor) -> AnySplit:
        """The split of the rows in `indices` (int64 [M])."""

    def with_channels(self, channels: int) -> AnySplit:
        """The split with its grey level repeated over `channels`, if it has no more than that one."""

    def gather(self, indices: Tensor, out: Tensor | None = None) -> Tensor:
        """The images (uint8 [B, C, H, W]) at `indices` (int64 [B] on the CPU), into `out` where it is given."""

    def chunks(self) -> Iterator[Tensor]:
        """All images in order, in pieces (uint8 [n, C, H, W]) that fit in memory."""


@dataclass(frozen=True)
class Split:
    """An `AnySplit` in memory: images (uint8 [N, C, H, W]) and their class indices (int64 [N])."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            raise DataError(f"images must be uint8 [N, C, H, W], got {_describe(self.images)}")
        if self.labels.dtype != torch.int64 or self.labels.dim() != 1:
            raise DataError(f"labels must be int64 [N], got {_describe(self.labels)}")
        if len(self.images) != len(self.labels):
            raise DataError(f"images and labels differ in length: {len(self.images)} and {len(self.labels)}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return tuple(self.images.shape[1:])

    def select(self, indices: Tensor) -> Split:
        """Copy of the rows in `indices` (int64 [M])."""
        return Split(self.images[indices], self.labels[indices])

    def with_channels(self, channels: int) -> Split:
        if self.images.shape[1] != 1 or channels == 1:
            return self
        return Split(self.images.repeat(1, channels, 1, 1), self.labels)

    def gather(self, indices: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.index_select(self.images, 0, indices, out=out)

    def chunks(self) -> Iterator[Tensor]:
        yield self.images


# Mean and standard deviation a channel, for pixels in [0, 1].
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class ImageDataset:
    """Three splits of equally shaped square images, class names, and what training images go through.

    published: the channels' statistics that others use, where there are any.
    notes: a line for each split that images were left out of.
    """

    name: str
    train: AnySplit
    validation: AnySplit
    test: AnySplit
    classes: tuple[str, ...]
    augmentation: AnyAugmentation
    published: Statistics | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        height, width = self.train.image_shape[1:]
        if height != width:
            raise DataError(f"{self.name}: images must be square, got {height}x{width}: image_size makes them so")

    @property
    def in_channels(self) -> int:
        return self.train.image_shape[0]

    @property
    def image_size(self) -> int:
        """Height, which is the width too, of what a network sees, in pixels; stored images may be larger."""
        return self.augmentation.output_size(self.train.image_shape[1])

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def published_normalisation(self) -> Statistics:
        """Mean and standard deviation per channel as `published`.

        Raises:
            DataError: there are none, or they are for other channels.
        """
        if self.published is None:
            raise DataError(f"normalisation: none is published for {self.name}, expected 'computed'")
        if len(self.published[0]) != self.in_channels:
            raise DataError(
                f"normalisation: the published one of {self.name} is for {len(self.published[0])} channels, "
                f"the images have {self.in_channels}"
            )
        return self.published

    def normalisation(self) -> Statistics:
        """Mean and standard deviation per channel of the training split, pixels scaled to [0, 1].

        A standard deviation is at least 1/255, so dividing by it is safe on a constant channel.
        """
        # A histogram is exact and needs no floating-point copy of the split.
        counts = torch.zeros(self.in_channels, 256, dtype=torch.int64)
        for images in self.train.chunks():
            counts += torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)])
        means, stds = [], []
        levels = torch.arange(256, dtype=torch.float64) / 255
        for channel in counts.double():
            weights = channel / channel.sum()
            mean = weights @ levels
            means.append(mean.item())
            stds.append(max((weights @ (levels - mean).square()).sqrt().item(), MIN_STD))
        return tuple(means), tuple(stds)


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split indices so that every class gives the same share to the held-out part.

    Args:
        labels: int64 [N], class indices of 0 or more.
        fraction: share to hold out, in (0, 1).
        seed: 0 or more; the same seed gives the same split, whatever the global random state.

    Returns:
        `(keep, held_out)`, ascending int64 indices. `held_out` has round(fraction * N) entries, fewer only
        where every class would otherwise not keep one image.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be above 0 and below 1, got {fraction}")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    values = labels.numpy()
    total = len(values)
    sizes = np.bincount(values)
    held_sizes = _held_out_sizes(sizes, fraction)

    # RandomState over MT19937: a stream that NumPy keeps the same in every version.
    shuffled = np.random.RandomState(np.random.MT19937(seed)).permutation(total)
    by_class = shuffled[np.argsort(values[shuffled], kind="stable")]
    rank = np.arange(total) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    held = np.zeros(total, dtype=bool)
    held[by_class] = rank < np.repeat(held_sizes, sizes)
    return torch.from_numpy(np.flatnonzero(~held)), torch.from_numpy(np.flatnonzero(held))


def _held_out_sizes(sizes: np.ndarray, fraction: float) -> np.ndarray:
    """Largest-remainder rounding of fraction * sizes that leaves one image in every class."""
    limits = np.maximum(sizes - 1, 0)
    quotas = fraction * sizes
    held = np.minimum(np.floor(quotas).astype(np.int64), limits)
    target = min(round(fraction * int(sizes.sum())), int(limits.sum()))
    while held.sum() < target:
        held[np.argmax(np.where(held < limits, quotas - held, -np.inf))] += 1
    return held


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
