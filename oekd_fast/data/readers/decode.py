"""Decode and resize images with Pillow."""

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from oekd_fast.data.error import DataError
from oekd_fast.data.memory import allocate
from oekd_fast.data.readers.formats import UnreadableImage, opened
from oekd_fast.data.readers.reading import require

GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr")
# From the EXIF orientation to the member of PIL.Image.Transpose that undoes it; 1 is upright.
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


class Decoded(NamedTuple):
    """Decoded images.

    Args:
        images: uint8 [N, C, H, W] with C = 1 if all images are grey, otherwise RGB. Transparency is dropped. The shape
            is [0, 1, 0, 0] if there is no image.
        rows: position of each image among the sources.
        unreadable: names of the sources that could not be decoded.
    """

    images: np.ndarray
    rows: list[int]
    unreadable: list[str]


def decode_images(
    sources: Iterable[tuple[str, Path | BytesIO]], count: int, size: int | None = None, skip_corrupt: bool = False
) -> Decoded:
    """Decode `count` images into one array.

    Args:
        sources: name of each image, for messages, and its file or bytes.
        count: number of sources.
        size: crop images to their middle square and resize it to this many pixels a side. None keeps their size,
            which has to be the same for all.
        skip_corrupt: leave out images that cannot be decoded.

    Raises:
        UnreadableImage: an image cannot be decoded, unless `skip_corrupt` is set.
        DataError: a file cannot be read, or an image has another size or more than 8 bits per channel.
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
        channels = 1 if pixels.ndim == 2 else 3
        if not rows:
            images, first = allocate(f"images of the size of {name}", count, (channels, *pixels.shape[:2])), name
        elif channels > images.shape[1]:  # the first image in colour
            grey = images[: len(rows)]
            images = allocate(f"images of the size of {first}", count, (channels, *images.shape[2:]))
            images[: len(rows)] = grey
        put_image(pixels, images[len(rows)], name, first)
        rows.append(row)
    return Decoded(images[: len(rows)], rows, unreadable)


def put_image(pixels: np.ndarray, out: np.ndarray, name: str, first: str) -> None:
    """Write an image to an array.

    Args:
        pixels: uint8 [H, W] or [H, W, 3].
        out: uint8 [C, H, W].
        name, first: names of the image and of the first image, whose size `out` has, for the error.

    Raises:
        DataError: the image has another size than the first.
    """
    if pixels.shape[:2] != out.shape[1:]:
        (height, width), (first_height, first_width) = pixels.shape[:2], out.shape[1:]
        raise DataError(
            f"{name}: expected {first_height}x{first_width} pixels (height x width), the size of {first}, "
            f"got {height}x{width}; set image_size to resize all images"
        )
    out[...] = pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def has_colour(name: str, source: Path | BytesIO) -> bool:
    """Return whether `decode_image` returns a colour image; reads the header only."""
    with opened(name, source) as image:
        return image.mode in COLOUR_MODES


def decode_image(name: str, source: Path | BytesIO, size: int | None = None) -> np.ndarray:
    """Decode an image; of an animation, the first frame. The EXIF orientation is applied, transparency is dropped.

    Args:
        name: name of the image, for errors.
        source: file or bytes.
        size: crop the image to its middle square and resize it to this many pixels a side; None keeps its size.

    Returns:
        uint8 [H, W] for a grey image, otherwise [H, W, 3].

    Raises:
        UnreadableImage: the image cannot be decoded.
        DataError: the file cannot be read, or the image has more than 8 bits per channel.
    """
    with opened(name, source) as image:
        mode = image.mode
        if mode in (*GREY_MODES, *COLOUR_MODES):
            plain = "L" if mode in GREY_MODES else "RGB"
            image.info.pop("transparency", None)  # Pillow warns when it converts a palette with it
            image.load()
            image = _upright(image)
            if image.mode != plain:
                image = image.convert(plain)
            return np.asarray(image if size is None else middle_square(image, size))
    raise DataError(f"image {name}: expected 8 bits per channel, grey or in colour, got Pillow mode {mode!r}")


def _upright(image: Any) -> Any:
    """Turn or mirror a loaded Pillow image as its EXIF orientation says, which is how viewers show it."""
    pillow, tags = require("PIL.Image"), require("PIL.ExifTags")
    try:
        orientation = image.getexif().get(tags.Base.Orientation)
    except Exception:  # damaged metadata, for which Pillow raises many types, leaves the pixels as they are
        return image
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(pillow.Transpose[turn])


def middle_square(image: Any, size: int) -> Any:
    """Crop a Pillow image to its middle square and resize that to `size` x `size` pixels.

    Pillow's bilinear filter widens with the scale, so that shrinking does not alias.
    """
    pillow = require("PIL.Image")
    edge = min(image.size)
    left, top = ((length - edge) / 2 for length in image.size)
    return image.resize((size, size), pillow.Resampling.BILINEAR, box=(left, top, left + edge, top + edge))


def resize_planes(images: np.ndarray, size: int) -> np.ndarray:
    """Return the middle squares of images with any number of channels: uint8 [N, C, H, W] -> [N, C, size, size]."""
    pillow = require("PIL.Image")
    out = allocate("resized images", len(images), (images.shape[1], size, size))
    for index in np.ndindex(images.shape[:2]):
        out[index] = middle_square(pillow.fromarray(np.ascontiguousarray(images[index])), size)
    return out
