"""From what a source read to an `ImageDataset`: checks that all sources share, and missing splits."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from oekd_fast.data.augmentation.settings import Protocol
from oekd_fast.data.dataset import AnySplit, DataError, ImageDataset, Statistics, stratified_split
from oekd_fast.data.readers.reading import ReadSplit

VALIDATION_NAMES = ("validation", "valid", "val")
SPLIT_NAMES = ("train", *VALIDATION_NAMES, "test")

# Fixed, so that a test split or a subset made here stays the same whatever the seed of the run.
TEST_FRACTION = 0.2
TEST_SEED = 0
SUBSET_SEED = 0


@dataclass(frozen=True)
class RawSplits:
    """What a source found: class names, and splits by role: "train" and maybe "validation" and "test".

    notes: a line for each split that images were left out of.
    """

    splits: Mapping[str, AnySplit]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, read: Mapping[str, ReadSplit], classes: Iterable[str]) -> RawSplits:
        notes = tuple(part.note for part in read.values() if part.note is not None)
        return cls({role: part.split for role, part in read.items()}, tuple(classes), notes)


def split_roles(names: Collection[str]) -> dict[str, str]:
    """Role -> name among the split names at hand; a validation split without a test split is the test."""
    validation = next((name for name in VALIDATION_NAMES if name in names), None)
    roles = {"train": "train" if "train" in names else None, "validation": validation, "test": "test"}
    if "test" not in names:
        roles |= {"validation": None, "test": validation}
    return {role: name for role, name in roles.items() if name}


def numbered_classes(labels: Tensor, source: str) -> tuple[str, ...]:
    """Names "0", "1", ... for training labels (int64 [N]) without names; they must leave no number out."""
    present = labels.unique().tolist()
    if present and present[0] < 0:
        raise DataError(f"{source}: labels must count from 0, got {present[0]}")
    for expected, label in enumerate(present):
        if label != expected:
            raise DataError(f"{source}: labels must count from 0 without gaps, got none of {expected} but {label}")
    return tuple(str(label) for label in present)


def check_same_classes(train: Collection[str], other: Collection[str], split: str) -> None:
    """Raise unless the classes of `split` are those of train, in the same order."""
    if list(train) == list(other):
        return
    only_train = [name for name in train if name not in other]
    only_other = [name for name in other if name not in train]
    if only_train or only_other:
        detail = f"only in train: {only_train}, only in {split}: {only_other}"
    else:
        detail = "the same names in another order"
    raise DataError(f"the classes of {split} differ from those of train ({detail})")


def assemble(
    name: str,
    raw: RawSplits,
    protocol: Protocol,
    published: Statistics | None,
    train_images: int | None,
    validation_fraction: float,
    seed: int,
) -> ImageDataset:
    """Check `raw` and cut the splits that it lacks from its training split."""
    if len(raw.classes) < 2:
        raise DataError(f"{name}: two classes or more are needed, got {list(raw.classes)}")
    channels = max(split.image_shape[0] for split in raw.splits.values())
    # Grey images beside a split in colour become colour.
    splits = {role: split.with_channels(channels) for role, split in raw.splits.items()}
    for role, split in splits.items():
        _check(f"{name}, {role}", split, splits["train"], len(raw.classes))
    if "test" not in splits:
        splits["train"], splits["test"] = _hold_out(name, "test", splits["train"], TEST_FRACTION, TEST_SEED)
    if train_images is not None:
        splits["train"] = _subset(name, splits["train"], train_images, len(raw.classes))
    if "validation" not in splits:
        splits["train"], splits["validation"] = _hold_out(
            name, "validation", splits["train"], validation_fraction, seed
        )
    return ImageDataset(
        name=name,
        **splits,
        classes=raw.classes,
        augmentation=protocol.augmentation(splits["train"].image_shape[1]),
        published=published,
        notes=raw.notes,
    )


def _check(where: str, split: AnySplit, train: AnySplit, num_classes: int) -> None:
    if len(split) == 0:
        raise DataError(f"{where}: no image")
    if split.image_shape != train.image_shape:
        raise DataError(
            f"{where}: images must have the shape of the training images, C x H x W "
            f"{_shape(train)}, got {_shape(split)}"
        )
    low, high = (int(label) for label in split.labels.aminmax())
    if low < 0 or high >= num_classes:
        raise DataError(f"{where}: labels must be in [0, {num_classes}), got {low if low < 0 else high}")


def _subset(name: str, train: AnySplit, count: int, num_classes: int) -> AnySplit:
    """`count` of the training images, each class by its share: all but what a stratified split would hold out."""
    if not num_classes <= count <= len(train):
        raise DataError(
            f"{name}: train_images must be from {num_classes}, one of each class, to {len(train)}, all there are; "
            f"got {count}"
        )
    if count == len(train):
        return train
    return train.select(stratified_split(train.labels, 1 - count / len(train), SUBSET_SEED)[0])


def _hold_out(name: str, role: str, train: AnySplit, fraction: float, seed: int) -> tuple[AnySplit, AnySplit]:
    keep, held = stratified_split(train.labels, fraction, seed)
    if len(held) == 0:
        raise DataError(f"{name}: {fraction} of {len(train)} training images leaves none for {role}")
    return train.select(keep), train.select(held)


def _shape(split: AnySplit) -> str:
    return "x".join(str(size) for size in split.image_shape)
