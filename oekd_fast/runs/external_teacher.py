"""The external teacher of a run: loads it, checks that it fits the data and the model, and describes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from oekd_fast.common.meta_copy import meta_copy
from oekd_fast.common.tensors import digest_of
from oekd_fast.common.text import reason_of
from oekd_fast.config.distillation import DistillationConfig
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import ImageDataset, centre
from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.family.saved import LoadedStudent
from oekd_fast.family.teacher import Teacher
from oekd_fast.family.teacher_sources import TeacherSource, load_source
from oekd_fast.models import Architecture
from oekd_fast.runs.device_data import DeviceData


def load_teacher(
    config: TrainConfig,
    dataset: ImageDataset,
    data: DeviceData,
    device: torch.device,
    ranks: int = 1,
    architecture: Architecture | None = None,
) -> Teacher | None:
    """Load the teacher that `config` names on `device`, and run it on a micro-batch of training images; None without
    one.

    Mean, standard deviation and image size are those of the config; where it has none, those that the source tells; and
    else those of the data set.

    Args:
        ranks: number of ranks that share a batch.
        architecture: network that learns; None stands for the registered one that the config names.

    Raises:
        FileNotFoundError: its file is missing.
        ValueError, TypeError: it cannot be loaded, or fits neither the data nor the model. The message is one line.
    """
    if config.teacher is None:
        return None
    try:
        source = load_source(config.teacher, device)
    except (TypeError, ValueError) as error:
        raise type(error)(f"teacher: {error}") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"teacher: {str(error).removeprefix('path: ')}") from error
    _check_numbers(source, data, str(config.teacher))
    mean, std = config.teacher_mean or source.mean, config.teacher_std or source.std
    for what, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != data.in_channels:
            raise ValueError(
                f"teacher_{what}: expected {data.in_channels} numbers, one for each channel of the data set's images, "
                f"got {len(values)}"
            )
    size = config.teacher_image_size or source.image_size
    statistics = (mean or data.normalisation[0], std or data.normalisation[1])
    weights = {**dict(source.network.named_parameters()), **dict(source.network.named_buffers())}
    record = {"weights": digest_of(weights), "mean": mean, "std": std, "image_size": size}
    fingerprint = {name: list(value) if isinstance(value, tuple) else value for name, value in record.items()}
    teacher = Teacher(source.network, statistics, (), data.num_classes, data.in_channels, size, fingerprint).to(device)
    count = -(-min(config.batch_size, len(dataset.train)) // (ranks * config.micro_batches))
    images = centre(dataset.train.gather(torch.arange(count)), dataset.augmentation).to(device)
    maps = _check_outputs(teacher, images, str(config.teacher))
    teacher.channels = tuple(each.shape[1] for each in maps)
    if config.family_objective.hints:
        _check_maps(maps, config, tuple(images.shape[1:]), data.num_classes, architecture or config.model)
    return teacher


def teacher_notes(teacher: Teacher, config: DistillationConfig) -> list[str]:
    """Return a line that says how images are prepared for a teacher that is not a saved student, else no line."""
    if isinstance(teacher.network, LoadedStudent):
        return []
    known = teacher.fingerprint
    missing = [noun for noun, key in (("mean", "mean"), ("deviation", "std")) if known[key] is None]
    normalised = f"{' and '.join(missing)} of the data set" if missing else "its own mean and deviation"
    size = known["image_size"]
    resized = "kept at their size" if size is None else f"resized to {size} x {size} pixels"
    parameters = sum(p.numel() for p in teacher.network.parameters())
    return [f"Teacher {config.teacher}: {parameters:,} parameters; images normalised by {normalised}, {resized}"]


def fingerprint_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Describe in one line how the fingerprint `now` of a teacher differs from `before`."""
    return "; ".join(
        f"{name}: expected {before.get(name)}, got {value}" for name, value in now.items() if before.get(name) != value
    )


def _check_numbers(source: TeacherSource, data: DeviceData, name: str) -> None:
    """Raise ValueError unless the numbers of classes and channels that `source` tells are those of the data set."""
    for what, own, given in (
        ("classes", source.num_classes, data.num_classes),
        ("channels of images", source.in_channels, data.in_channels),
    ):
        if own is not None and own != given:
            raise ValueError(f"teacher: expected {given} {what}, as the data set has, got {own} in {name}")


def _check_outputs(teacher: Teacher, images: Tensor, name: str) -> tuple[Tensor, ...]:
    """Return the maps of `teacher` for `images`; raises unless it returns finite logits for each class."""
    expected = [len(images), teacher.num_classes]
    try:
        logits, maps = teacher(images, torch.contiguous_format)
    except Exception as error:  # the network is the user's
        raise ValueError(
            f"teacher: {name} does not take images {list(images.shape)} of the data set ({reason_of(error)})"
        ) from error
    if logits.dim() == 2 and logits.shape[0] == expected[0] and logits.shape[1] != expected[1]:
        raise ValueError(
            f"teacher: expected {expected[1]} classes, as the data set has, got {logits.shape[1]} in {name}"
        )
    if list(logits.shape) != expected:
        raise ValueError(f"teacher: expected logits of shape {expected}, got {list(logits.shape)} from {name}")
    if not logits.is_floating_point() or not logits.isfinite().all():
        what = "NaN or infinity" if logits.is_floating_point() else str(logits.dtype)
        raise ValueError(f"teacher: expected finite floating-point logits, got {what} from {name}")
    return maps


def _check_maps(
    maps: tuple[Tensor, ...],
    config: TrainConfig,
    image_shape: tuple[int, int, int],
    classes: int,
    model: str | Architecture,
) -> None:
    """Raise ValueError unless each block of the model has a map, of the height and width of its own."""
    if not maps:
        raise ValueError(
            f"teacher: expected feature maps with objective={config.objective!r}, which a saved student has and a "
            f"network that returns logits and a list of maps, got logits alone from {config.teacher}"
        )
    with torch.device("meta"):
        family = build_ensemble(model, config.num_students, classes, image_shape[0], (0,), widths=config.widths)
        family = meta_copy(family).eval()
        own = family(torch.empty(1, *image_shape)).features[0]
    if len(maps) != len(own):
        raise ValueError(
            f"teacher: expected maps of {len(own)} blocks, as {config.model} has, got {len(maps)} in {config.teacher}"
        )
    for block, (given, expected) in enumerate(zip(maps, own, strict=True)):
        if given.dim() != 4 or given.shape[2:] != expected.shape[2:]:
            raise ValueError(
                f"teacher: expected a map of {expected.shape[2]} x {expected.shape[3]} pixels after block {block}, as "
                f"{config.model} has, got shape {list(given.shape)} in {config.teacher}"
            )
