"""Data sets and splits in memory, and a stratified split into a kept and a held-out part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from oekd_fast.data.augmentation.settings import AnyAugmentation
from oekd_fast.data.error import DataError
from oekd_fast.data.memory import check_fits

# One grey level: a channel that varies less than its quantisation step is treated as constant.
MIN_STD = 1 / 255


class AnySplit(Protocol):
    """Interface of labelled images. Labels are in memory; images may be read from disk when they are gathered."""

    @property
    def labels(self) -> Tensor:
        """Class indices, int64 [N]."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one image."""

    def __len__(self) -> int:
        """Return the number of images, N."""

    def select(self, indices: Tensor) -> AnySplit:
        """Return the split of the images at `indices` (int64 [M])."""

    def with_channels(self, channels: int) -> AnySplit:
        """Return the split with a grey channel repeated `channels` times; a split in colour is returned unchanged."""

    def gather(self, indices: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the images at `indices` (int64 [B], on the CPU) as uint8 [B, C, H, W], written to `out` if given."""

    def chunks(self) -> Iterator[Tensor]:
        """Iterate over all images in order, in pieces (uint8 [n, C, H, W]) that fit in memory."""


@dataclass(frozen=True)
class Split:
    """A split in memory.

    Args:
        images: uint8 [N, C, H, W].
        labels: class indices, int64 [N].

    Raises:
        DataError: a tensor has another dtype or shape, or the lengths differ.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            raise DataError(f"images: expected uint8 [N, C, H, W], got {_describe(self.images)}")
        if self.labels.dtype != torch.int64 or self.labels.dim() != 1:
            raise DataError(f"labels: expected int64 [N], got {_describe(self.labels)}")
        if len(self.images) != len(self.labels):
            raise DataError(f"labels: expected {len(self.images)}, one per image, got {len(self.labels)}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return tuple(self.images.shape[1:])

    def select(self, indices: Tensor) -> Split:
        """Return a copy of the images and labels at `indices` (int64 [M]).

        Raises:
            DataError: the copy does not fit in memory.
        """
        check_fits("copy of a split", len(indices), self.image_shape)
        return Split(self.images[indices], self.labels[indices])

    def with_channels(self, channels: int) -> Split:
        if self.images.shape[1] != 1 or channels == 1:
            return self
        check_fits("grey images beside colour images", len(self), (channels, *self.image_shape[1:]))
        return Split(self.images.repeat(1, channels, 1, 1), self.labels)

    def gather(self, indices: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.index_select(self.images, 0, indices, out=out)

    def chunks(self) -> Iterator[Tensor]:
        yield self.images


# Mean and standard deviation per channel, for pixels in [0, 1].
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class ImageDataset:
    """Training, validation and test splits of square images of one shape.

    Args:
        name: name of the data set, used in messages.
        train, validation, test: the splits.
        classes: name of each class, in the order of the labels.
        augmentation: augmentation of the training images.
        published: channel statistics in common use, or None.
        notes: one line each on how the source was read and on what was left out.
        held_out: names of the splits that the source does not have and that were cut from its training images.

    Raises:
        DataError: the images are not square.
    """

    name: str
    train: AnySplit
    validation: AnySplit
    test: AnySplit
    classes: tuple[str, ...]
    augmentation: AnyAugmentation
    published: Statistics | None = None
    notes: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        height, width = self.train.image_shape[1:]
        if height != width:
            raise DataError(f"{self.name}: expected square images, got {height}x{width}; set image_size to resize them")

    @property
    def in_channels(self) -> int:
        return self.train.image_shape[0]

    @property
    def image_size(self) -> int:
        """Height and width of the network's input, in pixels; stored images may be larger."""
        return self.augmentation.output_size(self.train.image_shape[1])

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def published_normalisation(self) -> Statistics:
        """Return the published mean and standard deviation per channel.

        Raises:
            DataError: there are no published statistics, or they are for another number of channels.
        """
        if self.published is None:
            raise DataError(
                f"normalisation: expected 'computed', got 'published'; {self.name} has no published statistics"
            )
        if len(self.published[0]) != self.in_channels:
            raise DataError(
                f"normalisation: expected statistics of {self.in_channels} channels, "
                f"got the published ones of {self.name} with {len(self.published[0])}"
            )
        return self.published

    def normalisation(self) -> Statistics:
        """Return mean and standard deviation per channel of the training images, for pixels in [0, 1].

        Standard deviations are at least 1/255, so that a constant channel can be divided by its own.
        """
        # Histograms are exact and need no floating-point copy of the images.
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
    """Split indices into a kept and a held-out part, which takes the same share of every class.

    Args:
        labels: class indices >= 0, int64 [N], on the CPU.
        fraction: share to hold out, in (0, 1).
        seed: integer >= 0. The split depends on the labels, the fraction and the seed only.

    Returns:
        `(keep, held_out)`, ascending int64 indices. `held_out` has round(fraction * N) entries, or fewer where more
        would leave a class without an image in `keep`.

    Raises:
        ValueError: `fraction` or `seed` is out of range.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction: expected a number in (0, 1), got {fraction}")
    if seed < 0:
        raise ValueError(f"seed: expected an integer >= 0, got {seed}")
    values = labels.numpy()
    total = len(values)
    sizes = np.bincount(values)
    held_sizes = _held_out_sizes(sizes, fraction)

    # NumPy guarantees that the stream of RandomState over MT19937 stays the same in every version.
    shuffled = np.random.RandomState(np.random.MT19937(seed)).permutation(total)
    by_class = shuffled[np.argsort(values[shuffled], kind="stable")]
    rank = np.arange(total) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    held = np.zeros(total, dtype=bool)
    held[by_class] = rank < np.repeat(held_sizes, sizes)
    return torch.from_numpy(np.flatnonzero(~held)), torch.from_numpy(np.flatnonzero(held))


def _held_out_sizes(sizes: np.ndarray, fraction: float) -> np.ndarray:
    """Round fraction * sizes by largest remainders, leaving at least one image in every class."""
    limits = np.maximum(sizes - 1, 0)
    quotas = fraction * sizes
    held = np.minimum(np.floor(quotas).astype(np.int64), limits)
    target = min(round(fraction * int(sizes.sum())), int(limits.sum()))
    while held.sum() < target:
        held[np.argmax(np.where(held < limits, quotas - held, -np.inf))] += 1
    return held


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
