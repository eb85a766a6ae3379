"""Flips that alternate from epoch to epoch."""

import pytest
import torch

from oekd_fast.common.part import Part
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import (
    AlternatingFlips,
    Augmentation,
    DataError,
    DeviceBatches,
    ImageDataset,
    ResizedCrop,
    Split,
    augment,
)
from oekd_fast.data.augmentation.transforms import crop, draw_crops
from oekd_fast.runs.device_data import DeviceData
from oekd_fast.training.data_parallel import order_of_part

from ...support.engines import CPU, make_engine
from ...support.smooth_network import SMOOTH

COUNT, SIZE = 1000, 7


def epoch_of(flips, order, epoch, first=0):
    """Return the flips of all batches of an epoch, from batch `first` on."""
    flips.begin(order, SIZE, first, epoch, COUNT)
    return torch.cat([flips.take() for _ in range(COUNT // SIZE - first)])


def test_each_image_is_flipped_in_every_other_epoch_and_half_of_them_in_the_first():
    flips, found = AlternatingFlips(0, CPU), []
    for epoch in range(4):
        order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(epoch))
        flipped = torch.full((COUNT,), -1)
        flipped[order[: COUNT // SIZE * SIZE]] = epoch_of(flips, order, epoch).long()
        found.append(flipped)
    first, second, third, fourth = found
    for one, other in ((first, second), (second, third), (third, fourth)):
        seen = (one >= 0) & (other >= 0)
        assert seen.sum() > 0.98 * COUNT and (one + other == 1)[seen].all()
    assert abs((first == 1).sum() - COUNT / 2) < 5 * (COUNT / 4) ** 0.5  # five standard deviations


def test_flips_depend_on_seed_and_epoch_alone():
    order, size = torch.arange(COUNT), SIZE
    whole = epoch_of(AlternatingFlips(3, CPU), order, 5)
    assert torch.equal(epoch_of(AlternatingFlips(3, CPU), order, 5, first=4), whole[4 * size :])
    assert not torch.equal(epoch_of(AlternatingFlips(4, CPU), order, 5), whole)
    part, flips = Part(2, 3, size), AlternatingFlips(3, CPU)
    flips.begin(order_of_part(order, size, part), part.count, 0, 5, COUNT)
    assert torch.equal(flips.take(), whole[2:5]) and torch.equal(flips.take(), whole[size + 2 : size + 5])


def test_given_flips_replace_those_that_are_drawn():
    images = torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mirror = torch.tensor([True, False, True, True, False])

    def generator():
        return torch.Generator().manual_seed(1)

    settings = Augmentation(2, flip=True)
    top, left, _ = draw_crops(5, settings, generator())
    expected = crop(images, 2, top, left, mirror)
    assert torch.equal(augment(images, settings, generator(), mirror=mirror), expected)
    straight, flipped = (
        augment(images, ResizedCrop(6, flip=True), generator(), mirror=flips)
        for flips in (torch.zeros_like(mirror), mirror)
    )
    assert torch.equal(flipped, torch.where(mirror.view(5, 1, 1, 1), straight.flip(3), straight))


def test_two_epochs_train_on_each_image_and_its_mirror_image(one_thread):
    augmentation = Augmentation(0, flip=True, alternate=True)
    engine = make_engine(TrainConfig(num_students=2), augmentation=augmentation, architecture=SMOOTH)
    images = torch.randint(256, (8, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batches, augmented, shown = DeviceBatches(Split(images, torch.arange(8)), CPU), engine._preprocessing.augmented, []
    engine._preprocessing.augmented = lambda *args: shown.append(augmented(*args)) or shown[-1]
    for epoch in range(2):
        engine.begin_epoch(batches, torch.arange(8), 4, epoch=epoch)
        engine.step()
        engine.step()
    first, second = torch.cat(shown[:2]), torch.cat(shown[2:])
    assert torch.equal(second, first.flip(3))
    flipped = [torch.equal(image, shown_image.flip(2)) for image, shown_image in zip(images, first, strict=True)]
    assert 0 < sum(flipped) < 8
    assert all(torch.equal(first[i], images[i]) for i in range(8) if not flipped[i])


def test_data_that_is_not_flipped_is_refused():
    split = Split(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4) % 2)

    def chosen(augmentation, **fields):
        data, config = ImageDataset("toy", split, split, split, ("a", "b"), augmentation), TrainConfig(**fields)
        return DeviceData.of(data, config, CPU).augmentation

    alternating = Augmentation(1, flip=True, alternate=True)
    assert chosen(Augmentation(1, flip=True), alternate_flips=True) == alternating
    assert chosen(Augmentation(1, flip=False), alternate_flips=True, flip=True) == alternating
    with pytest.raises(DataError, match="^alternate_flips: digits is not flipped by default, expected flip=True, got"):
        chosen(Augmentation(1, flip=False), alternate_flips=True)
    with pytest.raises(ValueError, match="^alternate: expected False with flip=False, got True$"):
        ResizedCrop(6, flip=False, alternate=True)
