"""Encoded images, in files or tables: read at once, or decoded when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from oekd_fast.data.dataset import Split
from oekd_fast.data.lazy import LazySplit
from oekd_fast.data.readers.decode import UnreadableImage, decode_image, decode_images, has_colour, put_image
from oekd_fast.data.readers.reading import Reading, ReadSplit, left_out

# Pillow decodes without the interpreter's lock, but opening an image needs it: more threads would wait for it.
DECODERS = min(8, os.cpu_count() or 1)
IMAGES_AT_ONCE = 256

# The name of an image, for messages, and its file or bytes.
Source = tuple[str, Path | BytesIO]
# Row numbers -> the images in these rows.
Fetch = Callable[[Sequence[int]], list[Source]]


def read_now(where: str, sources: Iterable[Source], labels: Tensor, reading: Reading) -> ReadSplit:
    """The split of all `sources`, whose classes are `labels` (int64 [N]); `where` names it in the note."""
    images, rows, unreadable = decode_images(sources, len(labels), reading.size, reading.skip_corrupt)
    split = Split(torch.from_numpy(images), labels[torch.tensor(rows, dtype=torch.int64)])
    return ReadSplit(split, left_out(where, unreadable, len(labels)))


def read_lazily(where: str, fetch: Fetch, labels: Tensor, reading: Reading) -> ReadSplit:
    """The same split, whose images are read as needed.

    What to skip is looked for here, once, by decoding everything: so rows, splits and batches are those of `read_now`.
    """
    count, note = len(labels), None
    if reading.skip_corrupt:
        unreadable = _unreadable(fetch, count)
        note = left_out(where, list(unreadable.values()), count)
        rows = [row for row in range(count) if row not in unreadable]
        labels, fetch = labels[torch.tensor(rows, dtype=torch.int64)], _part(fetch, rows)
    return ReadSplit(LazySplit.of(EncodedImages(fetch, len(labels), reading.size), labels), note)


class EncodedImages:
    """An `ImageSource` over `count` encoded images, which `fetch` finds.

    With `size` they are made squares of it, otherwise all are taken to be of the size of the first. They are in colour
    if any is: the headers up to the first image with colour are read here. No image has the shape (1, 0, 0).
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
        return any(has_colour(name, source) for rows in _parts(count) for name, source in self._fetch(rows))


def _unreadable(fetch: Fetch, count: int) -> dict[int, str]:
    """Row -> name of the images that cannot be decoded, in order."""
    found: dict[int, str] = {}
    for rows in _parts(count):
        images = fetch(rows)

        def check(index: int, rows: Sequence[int] = rows, images: list[Source] = images) -> None:
            name, source = images[index]
            try:
                decode_image(name, source)
            except UnreadableImage:
                found[rows[index]] = name

        _in_threads(check, len(images))
    return dict(sorted(found.items()))


def _part(fetch: Fetch, rows: list[int]) -> Fetch:
    return lambda numbers: fetch([rows[number] for number in numbers])


def _parts(count: int) -> list[range]:
    return [range(start, min(start + IMAGES_AT_ONCE, count)) for start in range(0, count, IMAGES_AT_ONCE)]


def _in_threads(work: Callable[[int], None], count: int) -> None:
    """`work(0)` to `work(count - 1)`; what one of them raises is raised."""

    def share(first: int) -> None:
        for index in range(first, count, DECODERS):
            work(index)

    # A pool for this call alone: whatever ends it, no thread stays.
    with ThreadPoolExecutor(DECODERS) as pool:
        list(pool.map(share, range(DECODERS)))
