"""A split whose images stay where they are until they are asked for: for data that does not fit in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

# Pixels read at a time by `chunks`; more gains nothing.
CHUNK_BYTES = 1 << 26


class ImageSource(Protocol):
    """Images of one shape that can be read in any order; `read` is called from one thread at a time."""

    image_shape: tuple[int, int, int]

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Write the images at `rows` (int64 [B]) to `out` (uint8 [B, C, H, W]); grey fills all C channels.

        Raises:
            DataError: an image cannot be read, or is not like the first; the message names it.
        """


@dataclass(frozen=True)
class LazySplit:
    """An `AnySplit` that reads its images when they are gathered.

    `labels` (int64 [N]) are in memory; image i is at `rows[i]` (int64 [N]) of `source`, as one of `channels` channels.
    """

    source: ImageSource
    labels: Tensor
    rows: Tensor
    channels: int

    @classmethod
    def of(cls, source: ImageSource, labels: Tensor) -> LazySplit:
        """All of `source`, whose classes are `labels`."""
        return cls(source, labels, torch.arange(len(labels)), source.image_shape[0])

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.channels, *self.source.image_shape[1:])

    def select(self, indices: Tensor) -> LazySplit:
        """The rows in `indices` (int64 [M]); no image is read."""
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
