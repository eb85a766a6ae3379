"""Image data for training: load a data set, serve its batches on a device, augment whole batches there.

- `load`: `load_dataset`, from a name or a folder to an `ImageDataset` with three splits (`dataset`, `lazy`).
- `known`: data sets known by name; `assemble`: the checks and missing splits that all readers share.
- `readers`: one module per file layout or hub.
- `class_weights`: weights for classes of different sizes.
- `augmentation`: random crops and flips of whole batches, on the device of the images.
- `batches`: a split as batches at fixed addresses on a device, from device memory, host memory or disk.

Importing this package needs torch and numpy only. Pillow, pyarrow, `datasets` and scikit-learn are imported by the
readers that use them, at their first use.
"""

from oekd_fast.data.augmentation.alternating import AlternatingFlips
from oekd_fast.data.augmentation.mixing import mix
from oekd_fast.data.augmentation.settings import AnyAugmentation, Augmentation, Mixing, ResizedCrop
from oekd_fast.data.augmentation.transforms import (
    augment,
    centre,
    normalise,
    normalising,
    pad_crop_flip,
    scale_and_shift,
)
from oekd_fast.data.batches.base import Batches, DeviceBatches, padded_order
from oekd_fast.data.batches.placement import place
from oekd_fast.data.batches.prefetch import HostBatches
from oekd_fast.data.class_weights import balanced_class_weights
from oekd_fast.data.dataset import AnySplit, DataError, ImageDataset, Split, stratified_split
from oekd_fast.data.lazy import LazySplit
from oekd_fast.data.load import load_dataset

__all__ = [
    "AlternatingFlips",
    "AnyAugmentation",
    "AnySplit",
    "Augmentation",
    "Batches",
    "DataError",
    "DeviceBatches",
    "HostBatches",
    "ImageDataset",
    "LazySplit",
    "Mixing",
    "ResizedCrop",
    "Split",
    "augment",
    "balanced_class_weights",
    "centre",
    "load_dataset",
    "mix",
    "normalise",
    "normalising",
    "pad_crop_flip",
    "padded_order",
    "place",
    "scale_and_shift",
    "stratified_split",
]
