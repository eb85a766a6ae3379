"""Reader of NumPy arrays: `<split>.images.npy` beside `<split>.labels.npy`."""

from pathlib import Path

import numpy as np
import torch

from oekd_fast.data.assemble import SPLIT_NAMES, SourceSplits, numbered_classes, stored_names
from oekd_fast.data.dataset import AnySplit, DataError, Split
from oekd_fast.data.lazy import LazySplit
from oekd_fast.data.readers.decode import resize_planes
from oekd_fast.data.readers.reading import ReadOptions


def has_arrays(root: Path) -> bool:
    """Return whether `root` holds the images of a training split as an array."""
    return _images_path(root, "train").is_file()


def read_arrays(root: Path, options: ReadOptions) -> SourceSplits:
    """Read images (uint8, N x H x W x C with 1 to 4 channels, or N x H x W) and labels (any integer dtype, N).

    Streamed images stay in their files, which are mapped into memory.

    Raises:
        DataError: a file is missing, damaged, or of another dtype or shape.
    """
    names = [name for name in SPLIT_NAMES if name not in options.skip_splits and _images_path(root, name).is_file()]
    splits = {split: _read_split(root, name, options) for split, name in stored_names(names).items()}
    return SourceSplits(splits, numbered_classes(splits["train"].labels, str(root / "train.labels.npy")))


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


def _read_split(root: Path, name: str, options: ReadOptions) -> AnySplit:
    images_path, labels_path = _images_path(root, name), root / f"{name}.labels.npy"
    images, labels = _load(images_path), _load(labels_path)
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or not 1 <= images.shape[-1] <= 4:
        raise DataError(
            f"{images_path}: expected uint8, N x H x W x C with 1 to 4 channels or N x H x W, got {_describe(images)}"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        raise DataError(f"{labels_path}: expected integers in one dimension, got {_describe(labels)}")
    if len(images) != len(labels):
        raise DataError(f"{labels_path}: expected {len(images)} labels, one per image, got {len(labels)}")
    labels = torch.from_numpy(labels.astype(np.int64))
    if options.stream:
        return LazySplit.of(ArrayImages(images, options.size), labels)
    planes = images.transpose(0, 3, 1, 2)
    # The only copy: from the mapped file to [N, C, H, W].
    planes = np.array(planes, order="C") if options.size is None else resize_planes(planes, options.size)
    return Split(torch.from_numpy(planes), labels)


def _images_path(root: Path, name: str) -> Path:
    return root / f"{name}.images.npy"


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{path}: the file is missing") from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _describe(array: np.ndarray) -> str:
    return f"{array.dtype} {' x '.join(str(size) for size in array.shape)}"
