"""The phases of a run in order, the weights and teachers of each, and their lengths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from oekd_fast.config.epoch_work import epoch_costs
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.family.flops import family_flops
from oekd_fast.family.teacher import Teacher
from oekd_fast.models import Architecture
from oekd_fast.runs.device_data import DeviceData
from oekd_fast.runs.tasks import PhaseResult, PhaseTask
from oekd_fast.runs.time_left import PhaseWork

FAMILY, PRETRAINING = "ensemble", "pretraining"
_GENERATION, _BASELINE = "generation_", "baseline_"


def phase_names(config: TrainConfig) -> list[str]:
    """Return the names of the phases in order: pre-training or earlier generations, the family, each student alone."""
    names = [PRETRAINING] if config.pretrain_epochs else []
    if config.objective == "born_again":
        names += [f"{_GENERATION}{i}" for i in range(1, config.generations)]
    names.append(FAMILY)
    if config.baseline:
        names += baseline_names(config)
    return names


def baseline_names(config: TrainConfig) -> list[str]:
    """Return the names of the phases that train each student alone, in the order of the students."""
    return [f"{_BASELINE}{j + 1}" for j in _members(config)]


def phase_task(
    name: str,
    config: TrainConfig,
    data: DeviceData,
    results: Mapping[str, PhaseResult],
    teacher: Teacher | None,
    architecture: Architecture | None = None,
) -> PhaseTask:
    """Return the task of the phase `name`, one of `phase_names`.

    Args:
        results: results of the phases before it, by name.
        teacher: external teacher of the family; None without one.
        architecture: network to train; None stands for the registered one that the config names.
    """
    return replace(_task(name, config, data, results, teacher), architecture=architecture)


def _task(
    name: str, config: TrainConfig, data: DeviceData, results: Mapping[str, PhaseResult], teacher: Teacher | None
) -> PhaseTask:
    members = _members_of(name, config)
    if name == PRETRAINING:
        return PhaseTask(name, members, from_labels=True, epochs=config.pretrain_epochs)
    if name.startswith(_BASELINE):
        return PhaseTask(name, members, from_labels=True)
    if config.objective == "born_again":
        if not results:
            return PhaseTask(name, members, from_labels=True)
        *_, before = results.values()
        return PhaseTask(name, members, teacher=_teacher_of(before, data))
    start = results[PRETRAINING].ensemble if PRETRAINING in results else None
    return PhaseTask(name, members, teacher=teacher, start=start)


def _members(config: TrainConfig) -> tuple[int, ...]:
    return (0,) if config.family_objective.alone else tuple(range(config.num_students))


def _members_of(name: str, config: TrainConfig) -> tuple[int, ...]:
    """Return the indices of the students that the phase `name` trains, counted from 0."""
    if name.startswith(_BASELINE):
        return (int(name.removeprefix(_BASELINE)) - 1,)
    return _members(config) if name == FAMILY else (0,)


def phase_works(config: TrainConfig, data: DeviceData, architecture: Architecture, image_size: int) -> list[PhaseWork]:
    """Return the length of each phase, and its operations in relation to the others.

    Args:
        architecture: network to train, with the widths of its students.
        image_size: side length of the images, in pixels.
    """
    names = phase_names(config)
    members = {name: _members_of(name, config) for name in names}
    flops, selection = dict.fromkeys(names, 1), dict.fromkeys(names, 0.0)
    if len(names) > 1 or config.keep_hardest is not None:
        family = build_ensemble(architecture, config.num_students, data.num_classes, data.in_channels)
        base, branches = family_flops(family, image_size)
        flops = {name: base + sum(branches[j] for j in members[name]) for name in names}
        # A forward pass of the last student; a step takes about three of all students.
        selection = {name: (base + branches[members[name][-1]]) / (3 * flops[name]) for name in names}
    # The test images are evaluated with the last and the selected weights, and for `test_flips` twice more.
    closing = (4 if config.test_flips else 2) * _evaluation(len(data.test), data)
    epochs = {name: config.pretrain_epochs if name == PRETRAINING else config.epochs for name in names}
    return [
        PhaseWork(
            name,
            epochs=epochs[name],
            students=len(members[name]),
            flops=flops[name],
            evaluation=_evaluation(len(data.validation), data),
            closing=closing,
            evaluate_every=config.evaluate_every,
            costs=epoch_costs(config, epochs[name], selection[name]),
        )
        for name in names
    ]


def _evaluation(images: int, data: DeviceData) -> float:
    """Return about how long `images` take to evaluate, in relation to the training of an epoch.

    A training step also computes the gradients of activations and of weights, about as many operations each.
    """
    return images / (3 * len(data.train))


def _teacher_of(result: PhaseResult, data: DeviceData) -> Teacher:
    family = result.ensemble
    channels = family.architecture.map_channels(0, family.num_students)
    return Teacher(family.student(0), data.normalisation, channels, data.num_classes, data.in_channels)
