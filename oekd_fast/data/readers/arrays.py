"""Reader of NumPy arrays: `<split>.images.npy` beside `<split>.labels.npy`."""

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
from oekd_fast.data.readers.npy import describe, map_npy
from oekd_fast.data.readers.reading import ReadOptions, ReadSplit
from oekd_fast.data.readers.split_names import choose_splits, split_roles

IMAGES, LABELS = ".images.npy", ".labels.npy"


def has_arrays(root: Path) -> bool:
    """Return whether `root` holds the images of a split as an array."""
    return any(split_roles(_names(root)).values())


def read_arrays(root: Path, options: ReadOptions) -> SourceSplits:
    """Read images (uint8, N x H x W x C with 1 to 4 channels, or N x H x W) and labels (any integer dtype, N).

    Streamed images stay in their files, which are mapped into memory.

    Raises:
        DataError: a file is missing, damaged, or of another dtype or shape.
    """
    choice = choose_splits(printable(root), _names(root), options.skip_splits)
    read = {split: ReadSplit(_read_split(root, name, options)) for split, name in choice.stored.items()}
    labels_path = printable(root / f"{choice.stored['train']}{LABELS}")
    classes = numbered_classes(read["train"].split.labels, labels_path)
    return SourceSplits.of(read, classes, (choice.note(printable(root)),))


class ArrayImages:
    """Image source over an array, which may be a memory-mapped file.

    Args:
        images: uint8 [N, H, W, C].
        size: height and width to resize images to, in pixels; None keeps theirs.
    """

    def __init__(self, images: np.ndarray, size: int | None = None) -> None:
        self._images = images
        self._size = size
        self.image_shape = (images.shape[3], *(images.shape[1:3] if size is None else (size, size)))

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        planes = self._images[rows].transpose(0, 3, 1, 2)
        out[...] = planes if self._size is None else resize_planes(planes, self._size)


def _names(root: Path) -> list[str]:
    """Return the stored names of splits whose images are in `root`."""
    files = (entry.name for entry in entries(root) if entry.name.endswith(IMAGES) and not is_folder(entry))
    return [name.removesuffix(IMAGES) for name in files]


def _read_split(root: Path, name: str, options: ReadOptions) -> AnySplit:
    images_path, labels_path = root / f"{name}{IMAGES}", root / f"{name}{LABELS}"
    images, labels = map_npy(images_path), map_npy(labels_path)
    if images.ndim == 3:
        images = images[..., None]
    where = printable(images_path)
    if images.dtype != np.uint8 or images.ndim != 4 or not 1 <= images.shape[-1] <= 4:
        found = describe(images.dtype, images.shape)
        raise DataError(f"{where}: expected uint8, N x H x W x C with 1 to 4 channels or N x H x W, got {found}")
    height, width = images.shape[1:3]
    if not 1 <= height * width <= MAX_PIXELS:
        raise DataError(f"{where}: expected images of 1 to {MAX_PIXELS:,} pixels, got {height} x {width}")
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        found = describe(labels.dtype, labels.shape)
        raise DataError(f"{printable(labels_path)}: expected integers in one dimension, got {found}")
    if len(images) != len(labels):
        raise DataError(f"{printable(labels_path)}: expected {len(images)} labels, one per image, got {len(labels)}")
    labels = torch.from_numpy(labels.astype(np.int64))
    if options.stream:
        return LazySplit.of(ArrayImages(images, options.size), labels)
    planes = images.transpose(0, 3, 1, 2)
    if options.size is not None:
        return Split(torch.from_numpy(resize_planes(planes, options.size)), labels)
    # The only copy: from the mapped file to [N, C, H, W].
    copy = allocate(f"images of {where}", len(planes), planes.shape[1:])
    copy[...] = planes
    return Split(torch.from_numpy(copy), labels)
