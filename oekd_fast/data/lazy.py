"""Splits whose images are read when they are gathered, for data that does not fit in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

# Bytes of pixels that `chunks` reads at a time.
CHUNK_BYTES = 1 << 26


class ImageSource(Protocol):
    """Interface of images of one shape (C, H, W) that can be read in any order, from one thread at a time."""

    image_shape: tuple[int, int, int]

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Write the images at `rows` (int64 [B]) to `out` (uint8 [B, C, H, W]); a grey image fills all C channels.

        Raises:
            DataError: an image cannot be read, or its size differs from that of the first; the message names it.
        """


@dataclass(frozen=True)
class LazySplit:
    """A split that reads its images when they are gathered.

    Args:
        source: where the images are read from.
        labels: class indices, int64 [N].
        rows: row of `source` that holds each image, int64 [N].
        channels: number of channels of the images returned.
    """

    source: ImageSource
    labels: Tensor
    rows: Tensor
    channels: int

    @classmethod
    def of(cls, source: ImageSource, labels: Tensor) -> LazySplit:
        """Return the split of all images of `source`, with class indices `labels` (int64 [N])."""
        return cls(source, labels, torch.arange(len(labels)), source.image_shape[0])

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.channels, *self.source.image_shape[1:])

    def select(self, indices: Tensor) -> LazySplit:
        """Return the split of the images at `indices` (int64 [M]), without reading any."""
        return replace(self, labels=self.labels[indices], rows=self.rows[indices])

    def with_channels(self, channels: int) -> LazySplit:
        return replace(self, channels=channels) if self.channels == 1 else self

    def gather(self, indices: Tensor, out: Tensor | None = None) -> Tensor:
        if out is None:
            out = torch.empty(len(indices), *self.image_shape, dtype=torch.uint8)
        self.source.read(self.rows[indices].numpy(), out.numpy())
        return out

    def chunks(self) -> Iterator[Tensor]:
        size = max(1, CHUNK_BYTES // max(1, torch.Size(self.image_shape).numel()))
        for indices in torch.arange(len(self)).split(size):
            yield self.gather(indices)
