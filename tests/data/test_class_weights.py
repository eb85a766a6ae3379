"""Weights for classes of different sizes."""

import pytest
import torch

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import Augmentation, DataError, ImageDataset, Split, balanced_class_weights
from oekd_fast.runs.device_data import DeviceData


def test_all_classes_have_the_same_weight_in_sum_and_images_a_mean_of_1():
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    weights = balanced_class_weights(labels, ("a", "b", "c"))
    torch.testing.assert_close(weights, torch.tensor([10 / 18, 10 / 9, 10 / 3]), rtol=1e-7, atol=0)
    assert weights[labels].mean().item() == pytest.approx(1.0)
    assert torch.equal(balanced_class_weights(torch.arange(4).repeat(5), "abcd"), torch.ones(4))


def test_weights_are_those_of_the_training_split():
    images = torch.zeros(8, 3, 4, 4, dtype=torch.uint8)
    train, other = Split(images, torch.tensor([0] * 6 + [1] * 2)), Split(images, torch.ones(8, dtype=torch.int64))
    data = ImageDataset("toy", train, other, other, ("a", "b"), Augmentation(0, flip=False))
    weights = DeviceData.of(data, TrainConfig(class_weights="balanced"), torch.device("cpu")).class_weights
    torch.testing.assert_close(weights, torch.tensor([8 / 12, 8 / 4]))
    assert DeviceData.of(data, TrainConfig(), torch.device("cpu")).class_weights is None


def test_a_class_without_images_is_named():
    message = "class_weights: expected training images of every class with 'balanced', got none of the class 'b'"
    with pytest.raises(DataError, match=f"^{message}$"):
        balanced_class_weights(torch.tensor([0, 2, 2]), ("a", "b", "c"))
