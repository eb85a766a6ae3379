"""Image data for the trainer: sources, batches on the device wherever the images are, whole-batch augmentation.

Importing this package needs torch and numpy; Pillow, pyarrow, `datasets` and scikit-learn are imported by
the sources that use them, when they are used.
"""

from oekd_fast.data.augmentation.settings import AnyAugmentation, Augmentation, ResizedCrop
from oekd_fast.data.augmentation.transforms import augment, centre, normalise, pad_crop_flip
from oekd_fast.data.batches.base import Batches, DeviceBatches, padded_order
from oekd_fast.data.batches.placement import place
from oekd_fast.data.batches.prefetch import HostBatches
from oekd_fast.data.dataset import AnySplit, DataError, ImageDataset, Split, stratified_split
from oekd_fast.data.lazy import LazySplit
from oekd_fast.data.load import load_dataset

__all__ = [
    "AnyAugmentation",
    "AnySplit",
    "Augmentation",
    "Batches",
    "DataError",
    "DeviceBatches",
    "HostBatches",
    "ImageDataset",
    "LazySplit",
    "ResizedCrop",
    "Split",
    "augment",
    "centre",
    "load_dataset",
    "normalise",
    "pad_crop_flip",
    "padded_order",
    "place",
    "stratified_split",
]
