"""The phases of a run in their order, and what each starts from and learns from."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.family.teacher import Teacher
from oekd_fast.runs.phase import DeviceData, Phase, PhaseResult, PhaseTask

FAMILY, PRETRAINING = "ensemble", "pretraining"
_GENERATION, _BASELINE = "generation_", "baseline_"


def phase_names(config: TrainConfig) -> list[str]:
    """Pre-training and earlier generations, the family, each student alone: what the config asks for, in order."""
    names = [PRETRAINING] if config.pretrain_epochs else []
    if config.objective == "born_again":
        names += [f"{_GENERATION}{i}" for i in range(1, config.generations)]
    names.append(FAMILY)
    if config.baseline:
        names += baseline_names(config)
    return names


def baseline_names(config: TrainConfig) -> list[str]:
    """Each student alone."""
    return [f"{_BASELINE}{j + 1}" for j in _members(config)]


def phase_task(
    name: str, config: TrainConfig, data: DeviceData, results: Mapping[str, PhaseResult], teacher: Teacher | None
) -> PhaseTask:
    """The task of one of `phase_names`.

    Args:
        results: of the phases before it.
        teacher: from outside the run.
    """
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


def combined_accuracy(
    config: TrainConfig, phase: Phase, results: Mapping[str, PhaseResult], data: DeviceData, labels: Tensor
) -> float | None:
    """Test accuracy, in percent, of the mean prediction of all snapshots or generations; None with a family.

    Args:
        phase: the last of them, finished; its network is as before afterwards.
        results: of all phases so far.
        labels: int64 [N], of the test split.
    """
    if not config.family_objective.alone:
        return None
    states = results[FAMILY].snapshots or [result.ensemble.state_dict() for result in results.values()]
    network = phase.engine.evaluated
    own = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    mean: Tensor | float = 0.0
    for state in states:
        network.load_state_dict(state)
        mean = mean + phase.engine.probabilities(data.test)[0] / len(states)
    network.load_state_dict(own)
    return round(100.0 * (mean.argmax(dim=1) == labels.cpu()).float().mean().item(), 4)


def _members(config: TrainConfig) -> tuple[int, ...]:
    return (0,) if config.family_objective.alone else tuple(range(config.num_students))


def _teacher_of(result: PhaseResult, data: DeviceData) -> Teacher:
    family = result.ensemble
    channels = family.architecture.map_channels(0, family.num_students)
    return Teacher(family.student(0), data.normalisation, channels, data.num_classes, data.in_channels)
