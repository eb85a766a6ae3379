"""Images to squares of one size, when they are loaded: Pillow's bilinear filter, wide enough not to alias."""

from typing import Any

import numpy as np

from oekd_fast.data.readers.optional import require


def middle_square(image: Any, size: int) -> Any:
    """The middle square of a Pillow image as `size` x `size` pixels: the shorter side is kept whole."""
    pillow = require("PIL.Image")
    edge = min(image.size)
    left, top = ((length - edge) / 2 for length in image.size)
    return image.resize((size, size), pillow.Resampling.BILINEAR, box=(left, top, left + edge, top + edge))


def resize_planes(images: np.ndarray, size: int) -> np.ndarray:
    """A resized copy of images (uint8 [N, C, H, W] -> [N, C, size, size]) with any number of channels."""
    pillow = require("PIL.Image")
    out = np.empty((*images.shape[:2], size, size), dtype=np.uint8)
    for index in np.ndindex(images.shape[:2]):
        out[index] = middle_square(pillow.fromarray(np.ascontiguousarray(images[index])), size)
    return out
