"""Encoded images to one uint8 array."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from oekd_fast.data.dataset import DataError
from oekd_fast.data.readers.optional import require
from oekd_fast.data.readers.resize import middle_square

GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr")


class UnreadableImage(DataError):
    """An image that is there but cannot be decoded."""


class Decoded(NamedTuple):
    """Images, which of the sources they are, and the names of the sources that could not be decoded.

    images: uint8 [N, C, H, W], grey (C = 1) if all images are, otherwise RGB. Transparency is dropped. No image gives
        [0, 1, 0, 0].
    """

    images: np.ndarray
    rows: list[int]
    unreadable: list[str]


def decode_images(
    sources: Iterable[tuple[str, Path | BytesIO]], count: int, size: int | None = None, skip_corrupt: bool = False
) -> Decoded:
    """Decode `count` images.

    Args:
        sources: the name of each image, for messages, and its file or bytes.
        count: how many there are.
        size: of the squares to make of them; None: they have one size, which is kept.
        skip_corrupt: leave out what cannot be decoded.
    """
    images, first = np.empty((0, 1, 0, 0), dtype=np.uint8), ""
    rows: list[int] = []
    unreadable: list[str] = []
    for row, (name, source) in enumerate(sources):
        try:
            pixels = decode_image(name, source, size)
        except UnreadableImage:
            if not skip_corrupt:
                raise
            unreadable.append(name)
            continue
        if not rows:
            images, first = np.empty((count, 1, *pixels.shape[:2]), dtype=np.uint8), name
        if pixels.ndim == 3 and images.shape[1] == 1:
            images = images.repeat(3, axis=1)
        put_image(pixels, images[len(rows)], name, first)
        rows.append(row)
    return Decoded(images[: len(rows)], rows, unreadable)


def put_image(pixels: np.ndarray, out: np.ndarray, name: str, first: str) -> None:
    """Write the image `name` (uint8 [H, W] or [H, W, 3]) to `out` (uint8 [C, H, W], of the size of `first`)."""
    if pixels.shape[:2] != out.shape[1:]:
        (height, width), (first_height, first_width) = pixels.shape[:2], out.shape[1:]
        raise DataError(
            "images must have one size, height x width: "
            f"{first} is {first_height}x{first_width}, {name} is {height}x{width}; "
            "image_size brings them to one"
        )
    out[...] = pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def has_colour(name: str, source: Path | BytesIO) -> bool:
    """Whether `decode_image` gives colour, by the image's header alone."""
    with _opened(name, source) as image:
        return image.mode in COLOUR_MODES


def decode_image(name: str, source: Path | BytesIO, size: int | None = None) -> np.ndarray:
    """One image as uint8 [H, W] if grey, else [H, W, 3]; with `size`, its middle square of that height and width."""
    with _opened(name, source) as image:
        mode = image.mode
        if mode in (*GREY_MODES, *COLOUR_MODES):
            plain = "L" if mode in GREY_MODES else "RGB"
            if mode != plain:
                image = image.convert(plain)
            return np.asarray(image if size is None else middle_square(image, size))
    raise DataError(f"image {name} must have 8 bits a channel, got Pillow mode {mode!r}")


@contextmanager
def _opened(name: str, source: Path | BytesIO) -> Iterator[Any]:
    pillow = require("PIL.Image")
    try:
        with pillow.open(source) as image:
            yield image
    except Exception as error:  # Pillow's readers raise many types on a damaged file
        # Not the image's fault: what the system could not do has a number.
        elsewhere = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None)
        raise (DataError if elsewhere else UnreadableImage)(f"cannot read image {name}: {error}") from error
