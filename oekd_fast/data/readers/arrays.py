"""Plain arrays: `<split>.images.npy` beside `<split>.labels.npy`."""

from pathlib import Path

import numpy as np
import torch

from oekd_fast.data.assemble import SPLIT_NAMES, RawSplits, numbered_classes, split_roles
from oekd_fast.data.dataset import AnySplit, DataError, Split
from oekd_fast.data.lazy import LazySplit
from oekd_fast.data.readers.reading import Reading
from oekd_fast.data.readers.resize import resize_planes


def has_arrays(root: Path) -> bool:
    return (root / "train.images.npy").is_file()


def read_arrays(root: Path, reading: Reading) -> RawSplits:
    """Read images (uint8, N x H x W x C with 1 to 4 channels, or N x H x W) and labels (any integer, N).

    Streamed images stay in their files, mapped into memory.
    """
    names = [name for name in SPLIT_NAMES if name not in reading.without and (root / f"{name}.images.npy").is_file()]
    splits = {role: _read_split(root, name, reading) for role, name in split_roles(names).items()}
    return RawSplits(splits, numbered_classes(splits["train"].labels, str(root / "train.labels.npy")))


class ArrayImages:
    """An `ImageSource` over an array (uint8 [N, H, W, C]), which may be a mapped file; resized to `size` if given."""

    def __init__(self, images: np.ndarray, size: int | None = None) -> None:
        self._images = images
        self._size = size
        self.image_shape = (images.shape[3], *(images.shape[1:3] if size is None else (size, size)))

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        planes = self._images[rows].transpose(0, 3, 1, 2)
        out[...] = planes if self._size is None else resize_planes(planes, self._size)


def _read_split(root: Path, name: str, reading: Reading) -> AnySplit:
    images_path, labels_path = root / f"{name}.images.npy", root / f"{name}.labels.npy"
    images, labels = _load(images_path), _load(labels_path)
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or not 1 <= images.shape[-1] <= 4:
        raise DataError(
            f"{images_path} must be uint8, N x H x W x C with 1 to 4 channels or N x H x W, got {_describe(images)}"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        raise DataError(f"{labels_path} must be integers in one dimension, got {_describe(labels)}")
    if len(images) != len(labels):
        raise DataError(f"{images_path} has {len(images)} images but {labels_path.name} {len(labels)} labels")
    labels = torch.from_numpy(labels.astype(np.int64))
    if reading.stream:
        return LazySplit.of(ArrayImages(images, reading.size), labels)
    planes = images.transpose(0, 3, 1, 2)
    # The one copy, straight from the mapped file into the layout of the trainer.
    planes = np.array(planes, order="C") if reading.size is None else resize_planes(planes, reading.size)
    return Split(torch.from_numpy(planes), labels)


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing") from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _describe(array: np.ndarray) -> str:
    return f"{array.dtype} {' x '.join(str(size) for size in array.shape)}"
