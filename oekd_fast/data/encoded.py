"""Encoded images, in files or tables, that are decoded when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np

from oekd_fast.data.decode import decode_image, has_colour, put_image

# Pillow decodes without the interpreter's lock, but opening an image needs it: more threads would wait for it.
DECODERS = min(8, os.cpu_count() or 1)
HEADERS_AT_ONCE = 256

# Row numbers -> of each image its name, for messages, and its file or bytes.
Fetch = Callable[[Sequence[int]], list[tuple[str, Path | BytesIO]]]


class EncodedImages:
    """An `ImageSource` over `count` encoded images, which `fetch` finds.

    All are taken to be of the size of the first, and in colour if any is: the headers up to the first image with
    colour are read here. No image has the shape (1, 0, 0).
    """

    def __init__(self, fetch: Fetch, count: int) -> None:
        self._fetch = fetch
        self._first = ""
        self.image_shape = (1, 0, 0)
        if count:
            ((self._first, source),) = fetch([0])
            height, width = decode_image(self._first, source).shape[:2]
            self.image_shape = (3 if self._any_colour(count) else 1, height, width)

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        images = self._fetch(rows.tolist())

        def decode(first: int) -> None:
            for index in range(first, len(images), DECODERS):
                name, source = images[index]
                put_image(decode_image(name, source), out[index], name, self._first)

        # A pool for this call alone: whatever ends it, no thread stays.
        with ThreadPoolExecutor(DECODERS) as pool:
            list(pool.map(decode, range(DECODERS)))

    def _any_colour(self, count: int) -> bool:
        starts = range(0, count, HEADERS_AT_ONCE)
        parts = (self._fetch(range(start, min(start + HEADERS_AT_ONCE, count))) for start in starts)
        return any(has_colour(name, source) for part in parts for name, source in part)
