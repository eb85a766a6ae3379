"""Reader of NumPy arrays: `<split>.images.npy` beside `<split>.labels.npy`."""

import math
from pathlib import Path

import numpy as np
import torch

from oekd_fast.data.assemble import SourceSplits, numbered_classes
from oekd_fast.data.dataset import AnySplit, Split
from oekd_fast.data.error import DataError
from oekd_fast.data.lazy import LazySplit
from oekd_fast.data.memory import allocate
from oekd_fast.data.names import printable
from oekd_fast.data.readers.decode import resize_planes
from oekd_fast.data.readers.folder_scan import entries, is_folder
from oekd_fast.data.readers.formats import MAX_PIXELS
from oekd_fast.data.readers.npy import NpyFile, describe
from oekd_fast.data.readers.reading import ReadOptions, ReadSplit
from oekd_fast.data.readers.split_names import choose_splits, split_roles

IMAGES, LABELS = ".images.npy", ".labels.npy"
# Bytes of a file that are held beside the result; they stay in the cache of the processor.
BYTES_AT_A_TIME = 1 << 20


def has_arrays(root: Path) -> bool:
    """Return whether `root` holds the images of a split as an array."""
    return any(split_roles(_names(root)).values())


def read_arrays(root: Path, options: ReadOptions) -> SourceSplits:
    """Read images (uint8, N x H x W x C with 1 to 4 channels, or N x H x W) and labels (any integer dtype, N).

    Streamed images stay in their files, which stay open.

    Raises:
        DataError: a file is missing, damaged, or of another dtype or shape.
    """
    choice = choose_splits(printable(root), _names(root), options.skip_splits)
    read = {split: ReadSplit(_read_split(root, name, options)) for split, name in choice.stored.items()}
    labels_path = printable(root / f"{choice.stored['train']}{LABELS}")
    classes = numbered_classes(read["train"].split.labels, labels_path)
    return SourceSplits.of(read, classes, (choice.note(printable(root)),))


class ArrayImages:
    """Image source over a file of an array.

    Args:
        images: uint8 [N, H, W, C] or [N, H, W].
        size: height and width to resize images to, in pixels; None keeps theirs.
    """

    def __init__(self, images: NpyFile, size: int | None = None) -> None:
        self._images = images
        self._size = size
        height, width, channels = *images.shape[1:], *([1] if len(images.shape) == 3 else [])
        self.image_shape = (channels, *((height, width) if size is None else (size, size)))

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        step = max(1, BYTES_AT_A_TIME // math.prod(self._images.shape[1:]))
        for start in range(0, len(rows), step):
            pixels = self._images.read(rows[start : start + step])
            planes = (pixels[..., None] if pixels.ndim == 3 else pixels).transpose(0, 3, 1, 2)
            out[start : start + step] = planes if self._size is None else resize_planes(planes, self._size)


def _names(root: Path) -> list[str]:
    """Return the stored names of splits whose images are in `root`."""
    files = (entry.name for entry in entries(root) if entry.name.endswith(IMAGES) and not is_folder(entry))
    return [name.removesuffix(IMAGES) for name in files]


def _read_split(root: Path, name: str, options: ReadOptions) -> AnySplit:
    images_path, labels_path = root / f"{name}{IMAGES}", root / f"{name}{LABELS}"
    images, labels = NpyFile(images_path), NpyFile(labels_path)
    where, shape = printable(images_path), images.shape
    if images.dtype != np.uint8 or not (len(shape) == 3 or (len(shape) == 4 and 1 <= shape[3] <= 4)):
        found = describe(images.dtype, shape)
        raise DataError(f"{where}: expected uint8, N x H x W x C with 1 to 4 channels or N x H x W, got {found}")
    height, width = shape[1:3]
    if not 1 <= height * width <= MAX_PIXELS:
        raise DataError(f"{where}: expected images of 1 to {MAX_PIXELS:,} pixels, got {height} x {width}")
    if not np.issubdtype(labels.dtype, np.integer) or len(labels.shape) != 1:
        found = describe(labels.dtype, labels.shape)
        raise DataError(f"{printable(labels_path)}: expected integers in one dimension, got {found}")
    count = shape[0]
    if labels.shape != (count,):
        raise DataError(f"{printable(labels_path)}: expected {count} labels, one per image, got {labels.shape[0]}")
    streamed = LazySplit.of(ArrayImages(images, options.size), torch.from_numpy(labels.read_all().astype(np.int64)))
    if options.stream:
        return streamed
    what = f"images of {where}" if options.size is None else "resized images"
    copy = allocate(what, count, streamed.image_shape)
    streamed.source.read(np.arange(count), copy)
    return Split(torch.from_numpy(copy), streamed.labels)
