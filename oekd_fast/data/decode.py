"""Encoded images to one uint8 array."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from oekd_fast.data.dataset import DataError
from oekd_fast.data.optional import require

GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr")


def decode_images(sources: Iterable[tuple[str, Path | BytesIO]], count: int) -> np.ndarray:
    """Decode `count` images of one size.

    Args:
        sources: the name of each image, for messages, and its file or bytes.
        count: how many there are.

    Returns:
        uint8 [N, C, H, W]: grey (C = 1) if all images are, otherwise RGB. Transparency is dropped.
        No image gives [0, 1, 0, 0].
    """
    images, first = np.empty((0, 1, 0, 0), dtype=np.uint8), ""
    for index, (name, source) in enumerate(sources):
        pixels = decode_image(name, source)
        if index == 0:
            images, first = np.empty((count, 1, *pixels.shape[:2]), dtype=np.uint8), name
        if pixels.ndim == 3 and images.shape[1] == 1:
            images = images.repeat(3, axis=1)
        put_image(pixels, images[index], name, first)
    return images


def put_image(pixels: np.ndarray, out: np.ndarray, name: str, first: str) -> None:
    """Write the image `name` (uint8 [H, W] or [H, W, 3]) to `out` (uint8 [C, H, W], of the size of `first`)."""
    if pixels.shape[:2] != out.shape[1:]:
        (height, width), (first_height, first_width) = pixels.shape[:2], out.shape[1:]
        raise DataError(
            "images must have one size, height x width: "
            f"{first} is {first_height}x{first_width}, {name} is {height}x{width}"
        )
    out[...] = pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def has_colour(name: str, source: Path | BytesIO) -> bool:
    """Whether `decode_image` gives colour, by the image's header alone."""
    with _opened(name, source) as image:
        return image.mode in COLOUR_MODES


def decode_image(name: str, source: Path | BytesIO) -> np.ndarray:
    """One image as uint8 [H, W] if grey, else [H, W, 3]."""
    with _opened(name, source) as image:
        mode = image.mode
        if mode in ("L", "RGB"):
            return np.asarray(image)
        if mode in GREY_MODES:
            return np.asarray(image.convert("L"))
        if mode in COLOUR_MODES:
            return np.asarray(image.convert("RGB"))
    raise DataError(f"image {name} must have 8 bits a channel, got Pillow mode {mode!r}")


@contextmanager
def _opened(name: str, source: Path | BytesIO) -> Iterator[Any]:
    pillow = require("PIL.Image")
    try:
        with pillow.open(source) as image:
            yield image
    except Exception as error:  # Pillow's readers raise many types on a damaged file
        raise DataError(f"cannot read image {name}: {error}") from error
