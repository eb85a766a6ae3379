"""Image data for the trainer: sources, device-resident batches, whole-batch augmentation.

Importing this package needs torch and numpy; Pillow, pyarrow, `datasets` and scikit-learn are imported by
the sources that use them, when they are used.
"""

from oekd_fast.data.augment import normalise, pad_crop_flip
from oekd_fast.data.batches import DeviceBatches
from oekd_fast.data.dataset import Augmentation, DataError, ImageDataset, Split, stratified_split
from oekd_fast.data.sources import load_dataset

__all__ = [
    "Augmentation",
    "DataError",
    "DeviceBatches",
    "ImageDataset",
    "Split",
    "load_dataset",
    "normalise",
    "pad_crop_flip",
    "stratified_split",
]
