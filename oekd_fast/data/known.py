"""Data sets known by name: their place on the hub, columns, augmentation, statistics and number of epochs.

Also compares two values of the config's `dataset`, which is a name or a folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from oekd_fast.data.augmentation.settings import AnyAugmentation, Augmentation, ResizedCrop
from oekd_fast.data.dataset import Statistics

# Statistics of the training images of ILSVRC 2012, as in torchvision; in common use for other photographs too.
IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class KnownDataset:
    """Facts about a known data set.

    Args:
        augmentation: augmentation of the training images. A `ResizedCrop` implies that stored images differ in size,
            and gives the size of the network's input.
        hub_id: name on the Hugging Face hub; None for data that is not on the hub and has to be given as files.
        config: configuration on the hub, for data sets that have several.
        image_column, label_column: columns of its tables.
        skip_splits: splits that are not read, since they have no labels.
        published: mean and standard deviation per channel in common use (of all training pixels, to four places).
        epochs: number of epochs in the paper (Walawalkar et al. 2020, section 4), or None.
    """

    augmentation: AnyAugmentation
    hub_id: str | None = None
    config: str | None = None
    image_column: str = "image"
    label_column: str = "label"
    skip_splits: tuple[str, ...] = ()
    published: Statistics | None = None
    epochs: int | None = None


KNOWN: Mapping[str, KnownDataset] = {
    "cifar10": KnownDataset(
        Augmentation(pad=4, flip=True),
        "uoft-cs/cifar10",
        image_column="img",
        published=((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        epochs=350,
    ),
    "cifar100": KnownDataset(
        Augmentation(pad=4, flip=True),
        "uoft-cs/cifar100",
        image_column="img",
        label_column="fine_label",
        published=((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        epochs=450,
    ),
    # As in the paper, the split "extra" is not used.
    "svhn": KnownDataset(
        Augmentation(pad=4, flip=False),
        "ufldl-stanford/svhn",
        config="cropped_digits",
        published=((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
        epochs=50,
    ),
    "fashion_mnist": KnownDataset(
        Augmentation(pad=2, flip=True), "zalando-datasets/fashion_mnist", published=((0.2860,), (0.3530,))
    ),
    "mnist": KnownDataset(Augmentation(pad=2, flip=False), "ylecun/mnist", published=((0.1307,), (0.3081,))),
    # The labelled part: 5,000 training and 8,000 test images.
    "stl10": KnownDataset(
        Augmentation(pad=12, flip=True),
        "tanganke/stl10",
        published=((0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)),
    ),
    "cub200": KnownDataset(ResizedCrop(224, flip=True), "Donghyun99/CUB-200-2011", published=IMAGENET),
    # The original data set has no splits; these were chosen by the uploader.
    "caltech256": KnownDataset(ResizedCrop(224, flip=True), "ilee0022/Caltech-256", published=IMAGENET),
    # The test split has no labels, so the validation images are the test split.
    "tiny_imagenet": KnownDataset(
        Augmentation(pad=8, flip=True),
        "zh-plus/tiny-imagenet",
        published=((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)),
    ),
    "tiny_imagenet25": KnownDataset(Augmentation(pad=8, flip=True)),
    "imagenet_1k": KnownDataset(
        ResizedCrop(224, flip=True), "ILSVRC/imagenet-1k", skip_splits=("test",), published=IMAGENET, epochs=100
    ),
}


_BY_HUB_ID = {known.hub_id: name for name, known in KNOWN.items() if known.hub_id is not None}


def known_name(name: str) -> str | None:
    """Return the key of `KNOWN` for `name`, which may have hyphens or be a name on the hub; None if it is unknown."""
    plain = _BY_HUB_ID.get(name, name.replace("-", "_"))
    return plain if plain in KNOWN else None


def same_data_name(one: str, other: str) -> bool:
    """Return whether two values of `dataset` are names of the same data set, or paths to the same folder."""
    if one == other:
        return True
    if not (_is_path(one) and _is_path(other)):
        return known_name(one) is not None and known_name(one) == known_name(other)
    return Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


def may_hold_the_same(before: str, now: str) -> bool:
    """Return whether `now` is a folder that may hold the data of the folder or the hub name `before`."""
    return same_data_name(before, now) or (_is_path(before) and _is_path(now) and Path(now).expanduser().is_dir())


def _is_path(dataset: str) -> bool:
    return dataset != "digits" and known_name(dataset) is None
