"""Section of the config: the data set, how it is split, and what is done to its images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from oekd_fast.config.section import Section, at_least, between, positive, setting, within

AugmentationName = Literal["auto", "none", "crop", "resized_crop"]


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """Data set, splits, augmentation and normalisation."""

    dataset: str = "digits"
    """Data set: digits, a known name such as cifar10, a folder, or owner/name on the Hugging Face hub."""
    data_dir: Path | None = setting(None, unset="download from the hub")
    """Folder with the files of a known data set."""
    image_column: str | None = setting(None, unset="found by name and type")
    """Column that holds the images of parquet files, save_to_disk folders and hub data sets."""
    label_column: str | None = setting(None, unset="found by name and type")
    """Column that holds the class labels of parquet files, save_to_disk folders and hub data sets."""
    train_images: int | None = setting(None, at_least(1), unset="all")
    """Number of training images to use, the same images for every seed, stratified by class."""
    validation_fraction: float = setting(0.1, within("(0, 1)"))
    """Fraction of the training images held out if the data set has no validation split."""
    image_size: int | None = setting(
        None,
        between(1, 16384, "pixels"),
        unset="the images' own size; 224 for known data sets with images of several sizes",
    )
    """Side length in pixels of the images that the networks take."""
    augment: bool = True
    """Augment the training images."""
    augmentation: AugmentationName = "auto"
    """crop pads, crops and flips; resized_crop cuts parts of random size; auto selects by data set."""
    pad: int | None = setting(None, between(0, 16384, "pixels"), unset="depends on the data set")
    """Pixels of padding before a random crop."""
    flip: bool | None = setting(None, unset="depends on the data set")
    """Flip half of the training images horizontally."""
    alternate_flips: bool = False
    """Flip each image in every other epoch, half of them in the first one, instead of at random in each epoch."""
    mixup: float | None = setting(None, positive(), unset="no mixup")
    """Mix pairs of training images and their labels, in a ratio drawn for each batch from Beta(MIXUP, MIXUP)."""
    cutmix: float | None = setting(None, positive(), unset="no CutMix")
    """Replace a box of each training image by that of another, of an area from Beta(CUTMIX, CUTMIX)."""
    normalisation: Literal["computed", "published"] = "computed"
    """Mean and deviation of each channel: computed from the training images, or published for the data set."""
    skip_corrupt: bool = False
    """Skip images that cannot be decoded and report their number, instead of stopping."""
    data_placement: Literal["auto", "device", "host", "stream"] = "auto"
    """Location of the images: on the device, in host memory, or on disk (stream); auto selects device or host."""

    @property
    def augmentation_choice(self) -> AugmentationName:
        """`augmentation`, or "none" if `augment` is False."""
        return self.augmentation if self.augment else "none"

    def check(self) -> None:
        if not self.augment and self.augmentation not in ("auto", "none"):
            raise ValueError(f"augmentation: expected auto or none with augment=False, got {self.augmentation!r}")
        if self.pad is not None and self.augmentation == "resized_crop":
            raise ValueError(
                f"pad: expected none with augmentation='resized_crop', which has no padding, got {self.pad}"
            )
        for name in ("mixup", "cutmix"):
            if not self.augment and getattr(self, name) is not None:
                raise ValueError(f"{name}: expected none with augment=False, got {getattr(self, name)}")
        if self.alternate_flips and (self.flip is False or self.augmentation_choice == "none"):
            reason = "flip=False" if self.flip is False else "no augmentation"
            raise ValueError(f"alternate_flips: expected False with {reason}, got True")
        super().check()
