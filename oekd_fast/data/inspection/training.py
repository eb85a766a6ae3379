"""Check and cut inspected splits as training does, without their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from oekd_fast.data.assemble import SourceSplits, assemble
from oekd_fast.data.augmentation.settings import AugmentationChoice
from oekd_fast.data.dataset import DataError, ImageDataset
from oekd_fast.data.inspection.facts import SplitFacts
from oekd_fast.data.known import known_name
from oekd_fast.data.lazy import LazySplit
from oekd_fast.data.load import image_settings, published_statistics


class TrainingOptions(Protocol):
    """Options of training that decide whether it can use the images."""

    image_size: int | None
    augmentation_choice: AugmentationChoice
    train_images: int | None
    validation_fraction: float
    normalisation: str
    skip_corrupt: bool


@dataclass(frozen=True)
class _Shape:
    """An image source that has a shape and no images."""

    image_shape: tuple[int, int, int]

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        raise AssertionError("the checks of training read no pixels")


def training_splits(
    name: str, classes: Sequence[str], splits: Sequence[SplitFacts], options: TrainingOptions
) -> ImageDataset:
    """Return the data set that training has, with splits that have labels and shapes only.

    Images that were not decoded, because the inspection stopped before them, are taken to be like the others.

    Raises:
        DataError: training cannot use the data set.
        ValueError: `augmentation_choice` or `image_size` is invalid.
    """
    name = known_name(name) or name
    settings = image_settings(name, options.augmentation_choice, options.image_size)
    for split in splits:
        if split.refused:
            raise DataError(_first(split.refused, "in all that training does not read"))
        if split.unreadable and not options.skip_corrupt:
            raise DataError(_first(split.unreadable, "unreadable in all, which skip_corrupt leaves out"))
    stored = settings.stored_size
    if stored is None:
        _check_sizes(splits)
    found = {split.name: _without_pixels(split, stored) for split in splits}
    source = SourceSplits(found, tuple(classes))
    dataset = assemble(
        name, source, settings, published_statistics(name), options.train_images, options.validation_fraction, seed=0
    )
    if options.normalisation == "published":
        dataset.published_normalisation()
    return dataset


def _check_sizes(splits: Sequence[SplitFacts]) -> None:
    sizes = {size for split in splits for size in split.sizes}
    if len(sizes) > 1:
        (height, width), (other_height, other_width) = sorted(sizes)[0], sorted(sizes)[-1]
        raise DataError(
            f"images: expected one size, got {len(sizes):,} from {height}x{width} to {other_height}x{other_width} "
            "(height x width); set image_size to resize all images"
        )


def _without_pixels(split: SplitFacts, stored: int | None) -> LazySplit:
    size = next(iter(split.sizes), (0, 0)) if stored is None else (stored, stored)
    shape = (1 if split.grey == len(split.rows) else 3, *size)
    undecoded = len(split.rows) + len(split.unreadable) < len(split.labels)
    rows = range(len(split.labels)) if undecoded else split.rows
    return LazySplit.of(_Shape(shape), split.labels[torch.tensor(list(rows), dtype=torch.int64)])


def _first(messages: Sequence[str], kind: str) -> str:
    return f"{messages[0]} ({len(messages):,} {kind})"
