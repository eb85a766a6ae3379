"""A subset of a data set: images to train on, other training images to choose by, and the test images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from oekd_fast.common.files import write_atomically
from oekd_fast.data import AnySplit, DataError

_COMPLETE = "complete"


def is_written(folder: Path) -> bool:
    """Return whether `folder` holds a whole subset."""
    return (folder / _COMPLETE).exists()


def write_subset(train: AnySplit, test: AnySplit, per_class: int, folder: Path) -> None:
    """Write the arrays of a subset to `folder`.

    The first `per_class` training images of each class train, the next ones are the validation images, and all test
    images are kept.

    Raises:
        DataError: a class has fewer than 2 * per_class training images.
    """
    rank, counts = _rank_in_class(train.labels), torch.bincount(train.labels)
    if counts.min() < 2 * per_class:
        raise DataError(
            f"per_class: expected at most half of the {counts.min()} training images of class {counts.argmin()}, "
            f"got {per_class}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, "train", train, torch.nonzero(rank < per_class).flatten())
    held_out = torch.nonzero((rank >= per_class) & (rank < 2 * per_class)).flatten()
    _write(folder, "validation", train, held_out)
    _write(folder, "test", test, torch.arange(len(test)))
    write_atomically(folder / _COMPLETE, b"")


def _rank_in_class(labels: Tensor) -> Tensor:
    """Return how many images of the same class come before each image, int64 [N]."""
    by_class = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels)
    starts = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    rank = torch.empty_like(labels)
    rank[by_class] = torch.arange(len(labels)) - starts
    return rank


def _write(folder: Path, name: str, split: AnySplit, indices: Tensor) -> None:
    images = split.gather(indices).permute(0, 2, 3, 1).contiguous().numpy()
    np.save(folder / f"{name}.images.npy", images)
    np.save(folder / f"{name}.labels.npy", split.labels[indices].numpy())
