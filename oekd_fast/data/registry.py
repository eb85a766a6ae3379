"""Data sets known by name: where they are published, their columns, the augmentation that suits them."""

from collections.abc import Mapping
from dataclasses import dataclass

from oekd_fast.data.protocol import Augmentation


@dataclass(frozen=True)
class KnownDataset:
    """A name's facts; `hub_id` is None for data that is on no hub and must be given as files."""

    augmentation: Augmentation
    hub_id: str | None = None
    config: str | None = None
    image_column: str = "image"
    label_column: str = "label"


KNOWN: Mapping[str, KnownDataset] = {
    "cifar10": KnownDataset(Augmentation(pad=4, flip=True), "uoft-cs/cifar10", image_column="img"),
    "cifar100": KnownDataset(
        Augmentation(pad=4, flip=True), "uoft-cs/cifar100", image_column="img", label_column="fine_label"
    ),
    "fashion_mnist": KnownDataset(Augmentation(pad=2, flip=True), "zalando-datasets/fashion_mnist"),
    "mnist": KnownDataset(Augmentation(pad=2, flip=False), "ylecun/mnist"),
    "svhn": KnownDataset(Augmentation(pad=4, flip=False), "ufldl-stanford/svhn", config="cropped_digits"),
    "tiny_imagenet": KnownDataset(Augmentation(pad=8, flip=True), "zh-plus/tiny-imagenet"),
    "tiny_imagenet25": KnownDataset(Augmentation(pad=8, flip=True)),
}
