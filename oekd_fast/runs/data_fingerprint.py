"""Fingerprint of the data that a run trains on, so that a run is not resumed on other data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from oekd_fast.data import AnySplit, ImageDataset, LazySplit

SPLITS = ("train", "validation", "test")
# Images of a split whose pixels are compared if the images are read from disk, where reading all would take an epoch.
SAMPLED_IMAGES = 256
_OTHER_IMAGES = "other images, or the same in another order"
_NAMED = 5  # classes that a message lists


@dataclass(frozen=True)
class SplitFingerprint:
    """Fingerprint of one split.

    counts: images of each class, in the order of the classes.
    labels: digest of the class indices in order.
    sample: digest of the pixels of at most 256 images at equal distances, in order.
    pixels: digest of the pixels of the images of each class, in order; None if the images are read from disk.
    """

    counts: tuple[int, ...]
    labels: str
    sample: str
    pixels: tuple[str, ...] | None

    @classmethod
    def of(cls, split: AnySplit, num_classes: int) -> SplitFingerprint:
        labels = split.labels.cpu()
        chosen = torch.arange(0, len(split), max(1, -(-len(split) // SAMPLED_IMAGES)))
        return cls(
            counts=tuple(torch.bincount(labels, minlength=num_classes).tolist()),
            labels=_digest(labels.numpy().tobytes()),
            sample=_digest(*(split.gather(index).numpy().tobytes() for index in chosen.split(1))),
            pixels=None if isinstance(split, LazySplit) else _pixels_by_class(split, num_classes),
        )

    def differences(self, now: SplitFingerprint, classes: tuple[str, ...]) -> list[str]:
        """Describe what differs in the split `now`, which has the same classes."""
        changed = [
            f"{name!r} has {after} images instead of {before}"
            for name, before, after in zip(classes, self.counts, now.counts, strict=True)
            if before != after
        ]
        if changed:
            return changed
        if self.labels != now.labels:
            return ["the images are in another order"]
        if self.pixels is not None and now.pixels is not None:
            pairs = zip(classes, self.pixels, now.pixels, strict=True)
            return [f"{name!r} has {_OTHER_IMAGES}" for name, old, new in pairs if old != new]
        return [f"it has {_OTHER_IMAGES}"] if self.sample != now.sample else []


@dataclass(frozen=True)
class DataFingerprint:
    """Fingerprint of a data set as a run uses it: after images were selected and missing splits were cut.

    It covers the names and the order of the classes, and for each split the number of images of each class and the
    order of the labels. It covers the pixels of all images and their order if the images are in memory, and of 256
    images of each split if they are read from disk. It does not cover the paths and the names of the files, so that a
    data set may move. Renaming a file matters where it changes the class or the order of the images.
    """

    classes: tuple[str, ...]
    splits: Mapping[str, SplitFingerprint]

    @classmethod
    def of(cls, dataset: ImageDataset) -> DataFingerprint:
        """Compute the fingerprint of `dataset`; reads all images in memory once.

        Raises:
            DataError: an image on disk cannot be read.
        """
        classes = tuple(map(str, dataset.classes))
        return cls(classes, {name: SplitFingerprint.of(getattr(dataset, name), len(classes)) for name in SPLITS})

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> DataFingerprint:
        """Return the fingerprint that `as_dict` described.

        Raises:
            KeyError, TypeError, ValueError: `content` is not the description of a fingerprint.
        """
        splits = {}
        for name in SPLITS:
            split = dict(content["splits"][name])
            pixels = split.pop("pixels")
            counts = tuple(map(int, split.pop("counts")))
            splits[name] = SplitFingerprint(counts, pixels=None if pixels is None else tuple(pixels), **split)
            if len(counts) != len(content["classes"]):
                raise ValueError(f"counts of {name}: expected {len(content['classes'])} numbers, got {len(counts)}")
        return cls(tuple(content["classes"]), splits)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as values that a checkpoint can hold."""
        splits = {
            name: {
                "counts": list(split.counts),
                "labels": split.labels,
                "sample": split.sample,
                "pixels": None if split.pixels is None else list(split.pixels),
            }
            for name, split in self.splits.items()
        }
        return {"classes": list(self.classes), "splits": splits}

    def differences(self, now: DataFingerprint) -> str | None:
        """Describe in one line how the data `now` differs from this data; None if it does not."""
        if self.classes != now.classes:
            removed = [name for name in self.classes if name not in now.classes]
            added = [name for name in now.classes if name not in self.classes]
            parts = [
                f"classes {what}: {_listed([repr(name) for name in names])}"
                for what, names in (("removed", removed), ("added", added))
                if names
            ]
            return "; ".join(parts) or "the classes are in another order"
        parts = [
            f"{name}: {_listed(changes)}"
            for name in SPLITS
            if (changes := self.splits[name].differences(now.splits[name], self.classes))
        ]
        return "; ".join(parts) or None


def _pixels_by_class(split: AnySplit, num_classes: int) -> tuple[str, ...]:
    digests = [hashlib.sha256(repr(split.image_shape).encode()) for _ in range(num_classes)]
    labels = split.labels.tolist()
    start = 0
    for images in split.chunks():
        for image in images.cpu().contiguous().numpy():
            digests[labels[start]].update(image)
            start += 1
    return tuple(digest.hexdigest()[:16] for digest in digests)


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


def _listed(items: list[str]) -> str:
    more = f" and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
    return ", ".join(items[:_NAMED]) + more
