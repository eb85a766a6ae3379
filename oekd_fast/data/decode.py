"""Encoded images to one uint8 array."""

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from types import ModuleType

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
    pillow = require("PIL.Image")
    images, first = np.empty((0, 1, 0, 0), dtype=np.uint8), ""
    for index, (name, source) in enumerate(sources):
        pixels = _decode(pillow, name, source)
        size = pixels.shape[:2]
        if index == 0:
            images, first = np.empty((count, 1, *size), dtype=np.uint8), name
        elif size != images.shape[2:]:
            raise DataError(
                f"images must have one size, height x width: {first} is "
                f"{images.shape[2]}x{images.shape[3]}, {name} is {size[0]}x{size[1]}"
            )
        if pixels.ndim == 3 and images.shape[1] == 1:
            images = images.repeat(3, axis=1)
        images[index] = pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return images


def _decode(pillow: ModuleType, name: str, source: Path | BytesIO) -> np.ndarray:
    """One image as uint8 [H, W] if grey, else [H, W, 3]."""
    try:
        with pillow.open(source) as image:
            mode = image.mode
            if mode in ("L", "RGB"):
                return np.asarray(image)
            if mode in GREY_MODES:
                return np.asarray(image.convert("L"))
            if mode in COLOUR_MODES:
                return np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow's readers raise many types on a damaged file
        raise DataError(f"cannot read image {name}: {error}") from error
    raise DataError(f"image {name} must have 8 bits a channel, got Pillow mode {mode!r}")
