"""Decode each image of a split once and record what it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from oekd_fast.data.dataset import AnySplit, DataError
from oekd_fast.data.readers.decode import decode_image
from oekd_fast.data.readers.encoded import DECODERS, EncodedSplit, Source
from oekd_fast.data.readers.formats import UnreadableImage, opened

HASH_BYTES = 16
# Encoded images that are held at a time, to be decoded in threads.
IMAGES_IN_MEMORY = 4 * DECODERS


@dataclass(frozen=True)
class ImageFacts:
    """Facts about one image that can be decoded.

    Args:
        size: height and width in pixels, upright.
        mode: mode of the file, as Pillow names it.
        format: format of the file, or "array".
        grey: whether the decoded image is grey.
        digest: hash of the decoded pixels; a colour image whose channels are equal has the digest of the grey one.
    """

    size: tuple[int, int]
    mode: str
    format: str
    grey: bool
    digest: bytes


@dataclass
class SplitFacts:
    """Facts about the images of a split.

    Args:
        name: "train", "validation" or "test".
        labels: class indices of all rows, int64 [N].
        names: name of each image that was decoded.
        rows: row of each image that was decoded.
        digests: hash of the pixels of each image that was decoded.
        sizes: number of images by (height, width).
        modes, formats: number of images by mode and by format.
        grey: number of grey images.
        unreadable: a message for each image that cannot be decoded; training can skip these.
        refused: a message for each image that training does not read at all.
    """

    name: str
    labels: Tensor
    names: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    grey: int = 0
    unreadable: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def add(self, row: int, name: str, facts: ImageFacts) -> None:
        """Record an image that was decoded."""
        self.rows.append(row)
        self.names.append(name)
        self.digests.append(facts.digest)
        self.sizes[facts.size] += 1
        self.modes[facts.mode] += 1
        self.formats[facts.format] += 1
        self.grey += facts.grey

    @property
    def decoded_labels(self) -> Tensor:
        """Class index of each image that was decoded, int64 [M]."""
        return self.labels[torch.tensor(self.rows, dtype=torch.int64)]

    def class_counts(self, num_classes: int) -> list[int]:
        """Return the number of rows of each class; labels out of range, which training refuses, are not counted."""
        valid = self.labels[(self.labels >= 0) & (self.labels < num_classes)]
        return torch.bincount(valid, minlength=num_classes).tolist()


def inspect_splits(splits: Mapping[str, EncodedSplit | AnySplit], max_images: int | None = None) -> list[SplitFacts]:
    """Decode the images of each split.

    Args:
        splits: splits by name, with encoded images or with images in memory.
        max_images: number of images to decode of each split, from its start; None for all.

    Raises:
        DataError: a table cannot be read. Errors of single images are recorded.
    """
    return [_inspect(name, split, max_images) for name, split in splits.items()]


def _inspect(name: str, split: EncodedSplit | AnySplit, max_images: int | None) -> SplitFacts:
    facts = SplitFacts(name, split.labels)
    if isinstance(split, EncodedSplit):
        with ThreadPoolExecutor(DECODERS) as pool:
            sources = enumerate(islice(split.sources, max_images))
            while batch := list(islice(sources, IMAGES_IN_MEMORY)):
                found = pool.map(_of_source, (source for _, source in batch))
                for (row, (source_name, _)), result in zip(batch, found, strict=True):
                    if isinstance(result, ImageFacts):
                        facts.add(row, source_name, result)
                    else:
                        skippable = isinstance(result, UnreadableImage)
                        (facts.unreadable if skippable else facts.refused).append(str(result))
        return facts
    for row, pixels in enumerate(islice(_pixels(split), max_images)):
        facts.add(row, f"image {row} of {name}", _of_pixels(pixels, "RGB" if pixels.ndim == 3 else "L", "array"))
    return facts


def _of_source(source: Source) -> ImageFacts | DataError:
    name, content = source
    try:
        with opened(name, content) as image:
            mode, kind = image.mode, image.format
        return _of_pixels(decode_image(name, content), mode, kind)
    except DataError as error:
        return error


def _pixels(split: AnySplit) -> Iterable[np.ndarray]:
    """Iterate over the images of a split in memory, as [H, W] or [H, W, C]."""
    for chunk in split.chunks():
        for image in chunk.numpy():
            yield image[0] if len(image) == 1 else image.transpose(1, 2, 0)


def _of_pixels(pixels: np.ndarray, mode: str, kind: str) -> ImageFacts:
    height, width = pixels.shape[:2]
    grey = pixels.ndim == 2
    if not grey and pixels.shape[2] == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    digest = blake2b(f"{pixels.shape}".encode(), digest_size=HASH_BYTES)
    digest.update(np.ascontiguousarray(pixels))
    return ImageFacts((height, width), mode, kind, grey, digest.digest())
