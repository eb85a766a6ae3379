"""Splits of encoded images from files or tables: decoded at once, or when they are gathered."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from oekd_fast.data.dataset import Split
from oekd_fast.data.lazy import LazySplit
from oekd_fast.data.readers.decode import decode_image, decode_images, has_colour, put_image
from oekd_fast.data.readers.formats import UnreadableImage
from oekd_fast.data.readers.reading import ReadOptions, ReadSplit, note_on_skipped

# Pillow releases the interpreter's lock while it decodes, but not while it opens an image; more threads would wait.
DECODERS = min(8, os.cpu_count() or 1)
IMAGES_PER_PASS = 256

# Name of an image, for messages, and its file or bytes.
Source = tuple[str, Path | BytesIO]
# From row numbers to the images in these rows.
Fetch = Callable[[Sequence[int]], list[Source]]


@dataclass(frozen=True)
class EncodedSplit:
    """A split whose images were not decoded.

    Args:
        sources: the N images, which can be iterated over once.
        labels: class indices, int64 [N].
    """

    sources: Iterable[Source]
    labels: Tensor


def read_into_memory(where: str, sources: Iterable[Source], labels: Tensor, options: ReadOptions) -> ReadSplit:
    """Decode all images of a split.

    Args:
        where: name of the split, for the note.
        sources: the N images.
        labels: class indices, int64 [N].
        options: size of the images, and whether to leave out those that cannot be decoded.

    Raises:
        DataError: see `decode_images`.
    """
    if options.keep_encoded:
        return ReadSplit(EncodedSplit(sources, labels))
    images, rows, unreadable = decode_images(sources, len(labels), options.size, options.skip_corrupt)
    split = Split(torch.from_numpy(images), labels[torch.tensor(rows, dtype=torch.int64)])
    return ReadSplit(split, note_on_skipped(where, unreadable, len(labels)))


def read_lazily(where: str, fetch: Fetch, labels: Tensor, options: ReadOptions) -> ReadSplit:
    """Return the split of `read_into_memory` with images that are decoded when they are gathered.

    With `skip_corrupt`, all images are decoded once here to find the unreadable ones, so that rows, splits and batches
    are the same as in memory.

    Raises:
        DataError: the first image or the header of another image cannot be read.
    """
    count, note = len(labels), None
    if options.skip_corrupt:
        unreadable = _unreadable(fetch, count)
        note = note_on_skipped(where, list(unreadable.values()), count)
        rows = [row for row in range(count) if row not in unreadable]
        labels, fetch = labels[torch.tensor(rows, dtype=torch.int64)], _only(fetch, rows)
    return ReadSplit(LazySplit.of(EncodedImages(fetch, len(labels), options.size), labels), note)


class EncodedImages:
    """Image source over encoded images.

    Images are in colour if any of them is: their headers are read here, up to the first colour image.

    Args:
        fetch: returns the images in given rows.
        count: number of images. The shape of the images is (1, 0, 0) if it is 0.
        size: crop images to their middle square and resize it to this many pixels a side. None expects all images to
            have the size of the first.
    """

    def __init__(self, fetch: Fetch, count: int, size: int | None = None) -> None:
        self._fetch = fetch
        self._size = size
        self._first = ""
        self.image_shape = (1, 0, 0)
        if count:
            ((self._first, source),) = fetch([0])
            height, width = decode_image(self._first, source, size).shape[:2]
            self.image_shape = (3 if self._any_colour(count) else 1, height, width)

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        images = self._fetch(rows.tolist())

        def decode(index: int) -> None:
            name, source = images[index]
            put_image(decode_image(name, source, self._size), out[index], name, self._first)

        _in_threads(decode, len(images))

    def _any_colour(self, count: int) -> bool:
        return any(has_colour(name, source) for rows in _passes(count) for name, source in self._fetch(rows))


def _unreadable(fetch: Fetch, count: int) -> dict[int, str]:
    """Return the row and name of each image that cannot be decoded, in ascending order of rows."""
    found: dict[int, str] = {}
    for rows in _passes(count):
        images = fetch(rows)

        def check(index: int, rows: Sequence[int] = rows, images: list[Source] = images) -> None:
            name, source = images[index]
            try:
                decode_image(name, source)
            except UnreadableImage:
                found[rows[index]] = name

        _in_threads(check, len(images))
    return dict(sorted(found.items()))


def _only(fetch: Fetch, rows: list[int]) -> Fetch:
    """Return a `fetch` that numbers the images in `rows` from 0."""
    return lambda numbers: fetch([rows[number] for number in numbers])


def _passes(count: int) -> list[range]:
    return [range(start, min(start + IMAGES_PER_PASS, count)) for start in range(0, count, IMAGES_PER_PASS)]


def _in_threads(work: Callable[[int], None], count: int) -> None:
    """Call `work(0)` to `work(count - 1)` in threads, and raise the first error of any of them."""

    def share(first: int) -> None:
        for index in range(first, count, DECODERS):
            work(index)

    # The pool belongs to this call, so that no thread outlives it, whatever ends it.
    with ThreadPoolExecutor(DECODERS) as pool:
        list(pool.map(share, range(DECODERS)))
