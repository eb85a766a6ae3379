"""The data set of a run, on the device that trains."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from oekd_fast.config.data import DataConfig
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import (
    AnyAugmentation,
    Batches,
    DataError,
    ImageDataset,
    ResizedCrop,
    balanced_class_weights,
    load_dataset,
    place,
)


@dataclass(frozen=True)
class DeviceData:
    """The three splits in batches on the device, and how a step treats their images.

    normalisation: mean and standard deviation of each channel, for pixels in [0, 1].
    augmentation: random changes to training images.
    num_classes: number of classes.
    in_channels: channels of the images.
    class_weights: weights of the classes in the cross-entropy, float32 [C] on the device; None without.
    notes: one line for each split that lacks images or was placed elsewhere than the config says.
    """

    train: Batches
    validation: Batches
    test: Batches
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]
    augmentation: AnyAugmentation
    num_classes: int
    in_channels: int
    class_weights: Tensor | None
    notes: tuple[str, ...]

    @classmethod
    def of(cls, dataset: ImageDataset, config: TrainConfig, device: torch.device) -> DeviceData:
        """Place the splits of `dataset`, which `dataset_of(config)` loaded.

        Raises:
            DataError: the data set does not have what the config expects of it.
        """
        names = ("train", "validation", "test")
        placed = [place(getattr(dataset, name), device, config.data_placement, name=name) for name in names]
        return cls(
            *(batches for batches, _ in placed),
            normalisation=(
                dataset.normalisation() if config.normalisation == "computed" else dataset.published_normalisation()
            ),
            augmentation=_augmentation(dataset.augmentation, config),
            num_classes=dataset.num_classes,
            in_channels=dataset.in_channels,
            class_weights=(
                balanced_class_weights(dataset.train.labels, dataset.classes).to(device)
                if config.class_weights == "balanced"
                else None
            ),
            notes=(*dataset.notes, *(note for _, note in placed if note is not None)),
        )


def dataset_of(config: TrainConfig) -> ImageDataset:
    """Load the data set that `config` trains on.

    Raises:
        DataError: the data set is unavailable or damaged.
    """
    return load_dataset(
        config.dataset,
        data_dir=config.data_dir,
        train_images=config.train_images,
        validation_fraction=config.validation_fraction,
        seed=config.seed,
        stream=config.data_placement == "stream",
        augmentation=config.augmentation_choice,
        image_size=config.image_size,
        skip_corrupt=config.skip_corrupt,
        image_column=config.image_column,
        label_column=config.label_column,
    )


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is CUDA if it is available, else the CPU.

    Raises:
        ValueError: the device is unknown or unavailable.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {name!r} cannot be used here ({str(error).splitlines()[0]})") from error
    return device


def _augmentation(default: AnyAugmentation, config: DataConfig) -> AnyAugmentation:
    """Return the data set's augmentation with the fields that `config` sets."""
    if config.augmentation_choice == "none":
        return default
    if isinstance(default, ResizedCrop) and config.pad is not None:
        raise DataError(f"pad: {config.dataset} has resized crops, which have no padding, got {config.pad}")
    changes = {"pad": config.pad, "flip": config.flip}
    augmentation = replace(default, **{name: value for name, value in changes.items() if value is not None})
    if config.alternate_flips and not augmentation.flip:
        raise DataError(f"alternate_flips: {config.dataset} is not flipped by default, expected flip=True, got None")
    return replace(augmentation, alternate=config.alternate_flips)
