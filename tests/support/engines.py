"""Engines, teachers and batches of small images for tests of the training step."""

import torch
from torch import nn

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import Augmentation
from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.family.teacher import Teacher
from oekd_fast.training.distillation import family_options, label_options
from oekd_fast.training.engine import Engine
from oekd_fast.training.prepare import prepare_family

NORMALISATION = ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
CPU = torch.device("cpu")


def make_engine(
    config=None,
    members=None,
    augmentation=None,
    recorder=None,
    teacher=None,
    architecture=None,
    adapters=True,
    class_weights=None,
):
    config = config or TrainConfig(num_students=3, warmup_epochs=0)
    torch.manual_seed(0)
    ensemble = build_ensemble(
        architecture or config.model,
        config.num_students,
        10,
        3,
        members,
        gated=config.family_objective.gated,
        hint_channels=teacher.channels if teacher is not None and config.family_objective.hints else None,
        adapters=adapters,
        helpers=config.family_objective.helpers,
    )
    if config.channels_last:
        ensemble = ensemble.to(memory_format=torch.channels_last)
    return Engine(
        config,
        prepare_family(ensemble, config),
        (family_options if len(ensemble.members) > 1 else label_options)(config, class_weights),
        device=CPU,
        normalisation=NORMALISATION,
        augmentation=augmentation or Augmentation(pad=0, flip=False),
        steps_per_epoch=10,
        teacher=teacher,
        recorder=recorder,
    )


def make_teacher(image_size=None):
    """Return a student as the teacher, or a network that returns logits alone for images of `image_size` pixels."""
    torch.manual_seed(7)
    if image_size is not None:
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
        return Teacher(network, NORMALISATION, (), 10, 3, image_size)
    return Teacher(build_ensemble("resnet20", 1, 10).student(0), NORMALISATION, (16, 32, 64), 10, 3)


def make_batch(rows=8):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (rows, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return images, torch.randint(10, (rows,), generator=generator)


def network_input(images):
    """Normalise uint8 pixels in float32, or floating-point pixels in their own dtype."""
    images = images if images.is_floating_point() else images.float()
    mean, std = (torch.tensor(values, dtype=images.dtype).view(3, 1, 1) for values in NORMALISATION)
    return (images / 255 - mean) / std
