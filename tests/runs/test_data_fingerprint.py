"""Fingerprints of data: what changes them, what they name, and what may differ."""

import pytest
import torch

from oekd_fast.data import Augmentation, ImageDataset, LazySplit, Split
from oekd_fast.runs.data_fingerprint import SAMPLED_IMAGES, DataFingerprint

CLASSES = ("bird", "cat", "dog")


def split_of(count, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(count) % len(CLASSES))


class Images:
    """Image source over a tensor."""

    def __init__(self, images):
        self.image_shape, self._images = tuple(images.shape[1:]), images

    def read(self, rows, out):
        out[:] = self._images[torch.from_numpy(rows)].numpy()


def dataset_of(train=None, classes=CLASSES, lazy=False):
    splits = [train or split_of(30, 0), split_of(6, 1), split_of(9, 2)]
    if lazy:
        splits = [LazySplit.of(Images(split.images), split.labels) for split in splits]
    return ImageDataset("pets", *splits, classes=classes, augmentation=Augmentation(pad=1, flip=False))


def difference(now, before=None):
    stored = DataFingerprint.of(before or dataset_of()).as_dict()
    return DataFingerprint.from_dict(stored).differences(DataFingerprint.of(now))


def test_the_same_data_has_the_same_fingerprint():
    assert difference(dataset_of()) is None
    assert DataFingerprint.from_dict(DataFingerprint.of(dataset_of()).as_dict()) == DataFingerprint.of(dataset_of())


def test_data_in_memory_and_on_disk_are_the_same_data():
    assert difference(dataset_of(lazy=True)) is None
    assert difference(dataset_of(), before=dataset_of(lazy=True)) is None


def test_classes_are_named():
    assert difference(dataset_of(classes=("bird", "cat", "wolf"))) == "classes removed: 'dog'; classes added: 'wolf'"
    assert difference(dataset_of(classes=("cat", "bird", "dog"))) == "the classes are in another order"
    many = tuple(f"{number:02d}" for number in range(9))
    assert difference(dataset_of(classes=(*CLASSES, *many))) == (
        "classes added: '00', '01', '02', '03', '04' and 4 more"
    )


@pytest.mark.parametrize("lazy", [False, True])
def test_changed_images_are_named(lazy):
    train = split_of(30, 0)

    def after(images, labels):
        return difference(dataset_of(Split(images, labels), lazy=lazy), before=dataset_of(lazy=lazy))

    def named(name):
        return f"train: {'it' if lazy else repr(name)} has other images, or the same in another order"

    assert after(train.images[1:], train.labels[1:]) == "train: 'bird' has 9 images instead of 10"
    one_more = torch.cat([train.images, train.images[:1]]), torch.cat([train.labels, torch.tensor([2])])
    assert after(*one_more) == "train: 'dog' has 11 images instead of 10"
    order = torch.arange(30)
    order[[0, 1]] = order[[1, 0]]
    assert after(train.images[order], train.labels[order]) == "train: the images are in another order"
    order = torch.arange(30)
    order[[1, 4]] = order[[4, 1]]
    assert after(train.images[order], train.labels[order]) == named("cat")
    other = train.images.clone()
    other[5, 0, 0, 0] ^= 1
    assert after(other, train.labels) == named("dog")


def test_every_pixel_in_memory_counts_and_a_sample_of_images_on_disk():
    train = split_of(2 * SAMPLED_IMAGES, 0)
    other = train.images.clone()
    other[1, 0, 0, 0] ^= 1  # images at even places are sampled
    assert "'cat' has other images" in difference(dataset_of(Split(other, train.labels)), before=dataset_of(train))
    assert difference(dataset_of(Split(other, train.labels), lazy=True), before=dataset_of(train, lazy=True)) is None
    other[2, 0, 0, 0] ^= 1
    assert difference(dataset_of(Split(other, train.labels), lazy=True), before=dataset_of(train, lazy=True)) == (
        "train: it has other images, or the same in another order"
    )


def test_a_damaged_fingerprint_raises():
    stored = DataFingerprint.of(dataset_of()).as_dict()
    stored["splits"]["train"]["counts"].append(1)
    with pytest.raises(ValueError, match="counts of train: expected 3 numbers, got 4"):
        DataFingerprint.from_dict(stored)
