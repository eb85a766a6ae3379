"""Smaller images in the first epochs: their size and content, and where the full size is used."""

import pytest
import torch
from torch.nn.functional import interpolate

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import Augmentation, DeviceBatches, Split
from oekd_fast.training.preprocessing import Preprocessing

from ..support.engines import CPU, NORMALISATION, make_batch, make_engine

GROWING = {"num_students": 2, "warmup_epochs": 0, "epochs": 10, "start_size": 0.5}


def preprocessing(memory_format=torch.contiguous_format):
    return Preprocessing(Augmentation(pad=0, flip=False), NORMALISATION, memory_format, CPU)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [
        ((32, 32), 0.5, (16, 16)),
        ((32, 48), 0.6, (20, 28)),
        ((32, 32), 0.01, (4, 4)),
        ((8, 8), 0.9, (8, 8)),
        ((3, 5), 0.5, (3, 4)),
        ((30, 30), 0.99, (28, 28)),
        ((7, 7), 0.95, (7, 7)),
    ],
)
def test_sizes_are_multiples_of_four(memory_format, size, side, expected):
    images = torch.randn(2, 3, *size).contiguous(memory_format=memory_format)
    smaller = preprocessing(memory_format).resized(images, side)
    assert smaller.shape == (2, 3, *expected) and smaller.is_contiguous(memory_format=memory_format)


def test_pixels_are_interpolated_with_antialiasing():
    images = torch.randn(2, 3, 32, 32)
    smaller = preprocessing().resized(images, 0.5)
    expected = interpolate(images.double(), (16, 16), mode="bilinear", antialias=True)
    assert (smaller.double() - expected).abs().max() < 1e-6
    constant = torch.full((1, 3, 32, 32), 1.5)
    assert torch.allclose(preprocessing().resized(constant, 0.4), torch.tensor(1.5))
    assert preprocessing().resized(images, 1.0) is images


def sizes_of(engine, epochs):
    """Return the size of the base's input in the first step of each epoch of `epochs`, and in an evaluation."""
    pixels, labels = make_batch(8)
    batches, seen = DeviceBatches(Split(pixels, labels), "cpu"), []
    hook = engine.ensemble.base.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[2:])))
    for epoch in epochs:
        engine.begin_epoch(batches, torch.arange(8), 8, epoch=epoch)
        engine.step()
    engine.evaluator.evaluate(batches)
    hook.remove()
    return seen


def test_images_grow_with_the_epochs_and_are_evaluated_at_their_full_size():
    engine = make_engine(TrainConfig(**GROWING))
    assert sizes_of(engine, (0, 5, 7, 8, 9)) == [(4, 4)] * 2 + [(8, 8)] * 4
    engine = make_engine(TrainConfig(**GROWING | {"growth": (0.0, 1.0)}))
    assert sizes_of(engine, (0, 4, 5)) == [(4, 4), (4, 4), (8, 8), (8, 8)]


def test_the_hardest_images_are_selected_at_the_size_of_the_epoch():
    engine = make_engine(TrainConfig(**GROWING, keep_hardest=0.5, hardest_between=(0.0, 1.0)))
    assert sizes_of(engine, (0,)) == [(4, 4), (4, 4), (8, 8)]  # selection, step, evaluation
