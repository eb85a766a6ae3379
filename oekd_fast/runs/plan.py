"""The phases of a run in order, and the weights and teachers of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.family.teacher import Teacher
from oekd_fast.models import Architecture
from oekd_fast.runs.device_data import DeviceData
from oekd_fast.runs.tasks import PhaseResult, PhaseTask

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
    if name == PRETRAINING:
        return PhaseTask(name, (0,), from_labels=True, epochs=config.pretrain_epochs)
    if name.startswith(_BASELINE):
        return PhaseTask(name, (int(name.removeprefix(_BASELINE)) - 1,), from_labels=True)
    if config.objective == "born_again":
        if not results:
            return PhaseTask(name, (0,), from_labels=True)
        *_, before = results.values()
        return PhaseTask(name, (0,), teacher=_teacher_of(before, data))
    start = results[PRETRAINING].ensemble if PRETRAINING in results else None
    return PhaseTask(name, _members(config), teacher=teacher, start=start)


def _members(config: TrainConfig) -> tuple[int, ...]:
    return (0,) if config.family_objective.alone else tuple(range(config.num_students))


def _teacher_of(result: PhaseResult, data: DeviceData) -> Teacher:
    family = result.ensemble
    channels = family.architecture.map_channels(0, family.num_students)
    return Teacher(family.student(0), data.normalisation, channels, data.num_classes, data.in_channels)
