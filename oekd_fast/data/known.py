"""Data sets known by name: where they are published, their columns, what suits them and what others do with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from oekd_fast.data.augmentation.settings import AnyAugmentation, Augmentation, ResizedCrop
from oekd_fast.data.dataset import Statistics

# Of the training images of ILSVRC 2012, as torchvision's models have it; usual for photographs of that size.
IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class KnownDataset:
    """A name's facts.

    augmentation: of training images; a `ResizedCrop` also says that they differ in size, and the size to make of them.
    hub_id: None for data that is on no hub and must be given as files.
    config: of the hub's data set, where there are several.
    without: splits that are of no use, as they have no labels.
    published: mean and standard deviation a channel that are widely used (of all training pixels, to four places).
    epochs: of the paper's runs (Walawalkar et al. 2020, section 4), None where it has none.
    """

    augmentation: AnyAugmentation
    hub_id: str | None = None
    config: str | None = None
    image_column: str = "image"
    label_column: str = "label"
    without: tuple[str, ...] = ()
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
    # Its split "extra" is not used, here as in the paper.
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
    # The labelled part: 5,000 and 8,000 images.
    "stl10": KnownDataset(
        Augmentation(pad=12, flip=True),
        "tanganke/stl10",
        published=((0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)),
    ),
    "cub200": KnownDataset(ResizedCrop(224, flip=True), "Donghyun99/CUB-200-2011", published=IMAGENET),
    # Its splits are those of whoever put it there: the data set itself has none.
    "caltech256": KnownDataset(ResizedCrop(224, flip=True), "ilee0022/Caltech-256", published=IMAGENET),
    # Tested on its validation images, as there are no others with labels.
    "tiny_imagenet": KnownDataset(
        Augmentation(pad=8, flip=True),
        "zh-plus/tiny-imagenet",
        published=((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)),
    ),
    "tiny_imagenet25": KnownDataset(Augmentation(pad=8, flip=True)),
    "imagenet_1k": KnownDataset(
        ResizedCrop(224, flip=True), "ILSVRC/imagenet-1k", without=("test",), published=IMAGENET, epochs=100
    ),
}


_BY_HUB_ID = {known.hub_id: name for name, known in KNOWN.items() if known.hub_id is not None}


def known_name(name: str) -> str | None:
    """The name in `KNOWN` that `name` means, which may have hyphens or be that of the hub; None if it means none."""
    plain = _BY_HUB_ID.get(name, name.replace("-", "_"))
    return plain if plain in KNOWN else None
