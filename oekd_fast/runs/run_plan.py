"""Plan of a run as plain values: its data, its family, and the phases with the time, memory and disk that they take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from oekd_fast.config.evaluated_epochs import EvaluatedEpochs
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import ImageDataset
from oekd_fast.family.ensemble import StudentEnsemble
from oekd_fast.family.flops import family_flops
from oekd_fast.family.helpers import Helpers
from oekd_fast.latency.networks import size_of
from oekd_fast.runs.phase import Phase
from oekd_fast.runs.plan import FAMILY, baseline_names
from oekd_fast.runs.rehearsal import Range, Rehearsal
from oekd_fast.runs.time_left import PhaseWork
from oekd_fast.training.channel_padding import without_padding

_CHECKPOINTS_KEPT = 2


@dataclass(frozen=True)
class DataFacts:
    """The data of a run.

    name: the data set.
    classes: number of classes.
    image_shape: channels, height and width of the images that the networks see.
    images: number of images of "train", "validation" and "test".
    held_out: names of the splits that were cut from the training images.
    pixel_bytes: size of all stored images.
    """

    name: str
    classes: int
    image_shape: tuple[int, int, int]
    images: Mapping[str, int]
    held_out: tuple[str, ...]
    pixel_bytes: int

    @classmethod
    def of(cls, dataset: ImageDataset) -> DataFacts:
        """Describe a data set as a run uses it: after images were selected and missing splits were cut."""
        splits = {name: getattr(dataset, name) for name in ("train", "validation", "test")}
        channels, height, width = dataset.train.image_shape
        return cls(
            name=dataset.name,
            classes=dataset.num_classes,
            image_shape=(channels, dataset.image_size, dataset.image_size),
            images={name: len(split) for name, split in splits.items()},
            held_out=dataset.held_out,
            pixel_bytes=sum(map(len, splits.values())) * channels * height * width,
        )


@dataclass(frozen=True)
class NetworkFacts:
    """A student, or all of them: parameters without adapters, and operations of the forward pass for one image."""

    parameters: int
    flops: int


@dataclass(frozen=True)
class FamilyFacts:
    """The family of a run.

    students: each student, in order.
    ensemble: all students on their shared base; None for objectives that train one network.
    trained_parameters: parameters that the family trains, those of `for_training` included.
    for_training: names of the modules that training alone uses, of "adapters", "critics" and "inlets".
    """

    students: tuple[NetworkFacts, ...]
    ensemble: NetworkFacts | None
    trained_parameters: int
    for_training: tuple[str, ...]

    @classmethod
    def of(cls, family: StudentEnsemble, image_size: int, helpers: Helpers) -> FamilyFacts:
        """Describe a family with `helpers` for images of `image_size` pixels a side."""
        modules = {"adapters": family.adapters, helpers: family.helpers}
        flops = family_flops(family, image_size)
        students = [
            NetworkFacts(parameters, flops.base + branch)
            for parameters, branch in zip(family.parameter_counts(), flops.branches, strict=True)
        ]
        together = NetworkFacts(sum(p.numel() for p in family.network_parameters()), flops.base + sum(flops.branches))
        return cls(
            students=tuple(students),
            ensemble=together if len(students) > 1 else None,
            trained_parameters=sum(p.numel() for p in family.parameters() if p.requires_grad),
            for_training=tuple(name for name, kind in modules.items() if next(kind.parameters(), None) is not None),
        )


@dataclass(frozen=True)
class PhasePlan:
    """A phase of a run.

    name: name of the phase.
    epochs, steps_per_epoch: its length.
    steps_left: training steps that are left, which is 0 if the phase has finished.
    step: seconds of a training step, the mean over all epochs.
    epoch: seconds of an epoch with its share of the evaluations.
    total: seconds of what is left, the evaluation of the test images included.
    disk_bytes: size of its checkpoints and its students at the end.
    """

    name: str
    epochs: int
    steps_per_epoch: int
    steps_left: int
    step: Range
    epoch: Range
    total: Range
    disk_bytes: int

    @classmethod
    def of(
        cls, phase: Phase, work: PhaseWork, steps_left: int, set_up: float, done: Rehearsal, config: TrainConfig
    ) -> PhasePlan:
        """Extrapolate from a rehearsal.

        Args:
            phase: the phase that was rehearsed.
            work: costs of its epochs.
            steps_left: training steps that were left before the rehearsal.
            set_up: seconds that the construction of the phase took.
            done: what the parts of the phase took.
        """
        epochs_left, every = steps_left / phase.steps_per_epoch, min(config.checkpoint_every, phase.epochs)
        evaluation = done.validation + (done.test if config.track_test else 0.0)
        evaluated = EvaluatedEpochs(phase.epochs, config.evaluate_every)
        evaluations_left = evaluated.after(phase.epochs - math.ceil(epochs_left))
        # The weights of the last epoch are evaluated, and those of the selected one unless it is the last. With flips
        # these are evaluated again, on twice as many images.
        flips = 2 * done.test * config.test_flips
        at_the_end = Range(done.test, 2 * done.test, 2 * done.test) + flips
        epochs_done = phase.epochs - epochs_left
        whole = math.ceil(epochs_done)
        cost_left = work.cost_after(whole) + (whole - epochs_done) * work.cost(int(epochs_done))
        step = done.step * (work.cost_after(0) / phase.epochs)
        after_steps = evaluation * evaluations_left + done.checkpoint * epochs_left / every
        total = done.step * (phase.steps_per_epoch * cost_left) + after_steps
        return cls(
            name=phase.name,
            epochs=phase.epochs,
            steps_per_epoch=phase.steps_per_epoch,
            steps_left=steps_left,
            step=step,
            epoch=step * phase.steps_per_epoch + evaluation * evaluated.after(0) / phase.epochs,
            total=total + (done.warm_up if steps_left else 0.0) + set_up + at_the_end,
            disk_bytes=_disk_bytes(phase, done, config),
        )


def _disk_bytes(phase: Phase, done: Rehearsal, config: TrainConfig) -> int:
    snapshots = config.snapshots if config.objective == "snapshot" and phase.name == FAMILY else 0
    kept = min(_CHECKPOINTS_KEPT, -(-phase.epochs // config.checkpoint_every))
    students = 0
    if phase.name in (FAMILY, *baseline_names(config)):
        family = without_padding(phase.engine.ensemble)
        students = sum(size_of(family.student(j))["file_bytes"] for j in family.members)
    return kept * (done.checkpoint_bytes + snapshots * done.model_bytes) + students


@dataclass(frozen=True)
class RunPlan:
    """What a run would do, from `dry_run`.

    config: the config of the run, with the precision that the networks are trained in.
    folder: the run folder.
    data, family: what is trained, on which images.
    phases: the phases, in order.
    device: the device of this process.
    threads: threads of a process on the CPU.
    processes: number of processes that train the run.
    batch_size: images of a step over all processes.
    executor: how the students of a step run.
    load_seconds: time to load the data.
    latency_seconds: time that the measurement of latency takes at most, after the training.
    host_bytes: peak memory of the largest process; None if the system does not say.
    device_bytes: peak memory on a CUDA device, of the largest process; None on other devices.
    notes: lines that the run prints before it trains.
    """

    config: TrainConfig
    folder: Path
    data: DataFacts
    family: FamilyFacts
    phases: tuple[PhasePlan, ...]
    device: str
    threads: int
    processes: int
    batch_size: int
    executor: Literal["parallel", "sequential"]
    load_seconds: float
    latency_seconds: float
    host_bytes: int | None
    device_bytes: int | None
    notes: tuple[str, ...]

    @property
    def family_phase(self) -> PhasePlan:
        """The phase that trains the family."""
        return next(phase for phase in self.phases if phase.name == FAMILY)

    @property
    def seconds(self) -> Range:
        """Time of what is left of the run, without the measurement of latency."""
        total = Range(self.load_seconds, self.load_seconds, self.load_seconds)
        for phase in self.phases:
            total += phase.total
        return total

    @property
    def disk_bytes(self) -> int:
        """Size of the checkpoints and the students at the end of the run."""
        return sum(phase.disk_bytes for phase in self.phases)
