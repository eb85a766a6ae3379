"""Build an `ImageDataset` from the splits that a reader found: check them and cut the missing ones."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from oekd_fast.data.augmentation.settings import ImageSettings
from oekd_fast.data.dataset import AnySplit, DataError, ImageDataset, Statistics, stratified_split
from oekd_fast.data.readers.reading import ReadSplit

# Fixed seeds, so that a test split or a subset made here is the same for every seed of a run.
TEST_FRACTION = 0.2
TEST_SEED = 0
SUBSET_SEED = 0


@dataclass(frozen=True)
class SourceSplits:
    """Splits and class names that a reader found.

    Args:
        splits: "train", and "validation" and "test" if the source has them.
        classes: name of each class, in the order of the labels.
        notes: one line each on how the source was read and on what was left out.
    """

    splits: Mapping[str, AnySplit]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, read: Mapping[str, ReadSplit], classes: Iterable[str], notes: Iterable[str | None] = ()
    ) -> SourceSplits:
        """Collect the splits of `read`, by "train", "validation" and "test", and all notes that are not None."""
        said = (*notes, *(part.note for part in read.values()))
        splits = {name: part.split for name, part in read.items()}
        return cls(splits, tuple(classes), tuple(note for note in said if note is not None))


def numbered_classes(labels: Tensor, source: str) -> tuple[str, ...]:
    """Return the class names "0", "1", ... for labels (int64 [N]) that have no names.

    Raises:
        DataError: the labels do not use every integer from 0 to their maximum.
    """
    present = labels.unique().tolist()
    if present and present[0] < 0:
        raise DataError(f"{source}: expected labels that count from 0, got {present[0]}")
    for expected, label in enumerate(present):
        if label != expected:
            raise DataError(f"{source}: expected labels that count from 0 without gaps, got {label} but no {expected}")
    return tuple(str(label) for label in present)


def check_same_classes(train: Collection[str], other: Collection[str], split: str) -> None:
    """Raise DataError unless the class names `other` of `split` equal those of train, in the same order."""
    if list(train) == list(other):
        return
    only_train = [name for name in train if name not in other]
    only_other = [name for name in other if name not in train]
    if only_train or only_other:
        difference = f"classes only in train: {only_train}, only in {split}: {only_other}"
    else:
        difference = "the same classes in another order"
    raise DataError(f"{split}: expected the classes of train in the same order, got {difference}")


def assemble(
    name: str,
    source: SourceSplits,
    settings: ImageSettings,
    published: Statistics | None,
    train_images: int | None,
    validation_fraction: float,
    seed: int,
) -> ImageDataset:
    """Check `source` and cut missing validation and test splits from its training images.

    Arguments are those of `load_dataset`; `published` are channel statistics in common use.

    Raises:
        DataError: the splits are inconsistent, or have too few images.
    """
    if len(source.classes) < 2:
        raise DataError(f"{name}: expected at least two classes, got {list(source.classes)}")
    channels = max(split.image_shape[0] for split in source.splits.values())
    # A grey split beside a colour split is repeated over its channels.
    splits = {split_name: split.with_channels(channels) for split_name, split in source.splits.items()}
    for split_name, split in splits.items():
        _check(f"{name}, {split_name}", split, splits["train"], len(source.classes))
    if "test" not in splits:
        splits["train"], splits["test"] = _hold_out(name, "test", splits["train"], TEST_FRACTION, TEST_SEED)
    if train_images is not None:
        splits["train"] = _subset(name, splits["train"], train_images, len(source.classes))
    if "validation" not in splits:
        splits["train"], splits["validation"] = _hold_out(
            name, "validation", splits["train"], validation_fraction, seed
        )
    return ImageDataset(
        name=name,
        **splits,
        classes=source.classes,
        augmentation=settings.augmentation(splits["train"].image_shape[1]),
        published=published,
        notes=source.notes,
        held_out=tuple(split for split in ("test", "validation") if split not in source.splits),
    )


def _check(where: str, split: AnySplit, train: AnySplit, num_classes: int) -> None:
    if len(split) == 0:
        raise DataError(f"{where}: expected at least one image, got none")
    if split.image_shape != train.image_shape:
        raise DataError(
            f"{where}: expected images of shape {_shape(train)} (C x H x W) as in train, got {_shape(split)}"
        )
    low, high = (int(label) for label in split.labels.aminmax())
    if low < 0 or high >= num_classes:
        raise DataError(f"{where}: expected labels in [0, {num_classes}), got {low if low < 0 else high}")


def _subset(name: str, train: AnySplit, count: int, num_classes: int) -> AnySplit:
    """Return `count` of the training images, with the class shares of all of them."""
    if not num_classes <= count <= len(train):
        raise DataError(
            f"train_images: expected {num_classes} (one per class) to {len(train)} (all images of {name}), got {count}"
        )
    if count == len(train):
        return train
    return train.select(stratified_split(train.labels, 1 - count / len(train), SUBSET_SEED)[0])


def _hold_out(name: str, split: str, train: AnySplit, fraction: float, seed: int) -> tuple[AnySplit, AnySplit]:
    keep, held = stratified_split(train.labels, fraction, seed)
    if len(held) == 0:
        raise DataError(f"{name}: expected enough training images for a {split} split of {fraction}, got {len(train)}")
    return train.select(keep), train.select(held)


def _shape(split: AnySplit) -> str:
    return "x".join(str(size) for size in split.image_shape)
