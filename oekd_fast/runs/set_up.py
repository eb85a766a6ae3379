"""Set-up of a run before its first phase: device, precision and run folder, then data, network and teacher."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch

from oekd_fast import native
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import ImageDataset
from oekd_fast.distributed.agreement import failing_together
from oekd_fast.distributed.world import World
from oekd_fast.family.teacher import Teacher
from oekd_fast.models import Architecture, with_widths
from oekd_fast.models.model_sources import Images, registered
from oekd_fast.runs.build import initial_weights_note, model_of, width_notes
from oekd_fast.runs.data_fingerprint import DataFingerprint
from oekd_fast.runs.device_data import DeviceData, dataset_of
from oekd_fast.runs.external_teacher import load_teacher, teacher_notes
from oekd_fast.runs.phase import Phase
from oekd_fast.runs.plan import phase_task
from oekd_fast.runs.ranks import check_same_run, device_of_rank, first_on_each_machine, threads_of_rank
from oekd_fast.runs.run_folder import RunFolder
from oekd_fast.runs.tasks import PhaseResult
from oekd_fast.training.numerics import automatic_precision, default_precision


@dataclass(frozen=True)
class OpenRun:
    """A run whose folder is held and whose device is chosen.

    config: the config of the run, with the precision that the networks are trained in.
    world: ranks that train the run.
    device: device of this rank.
    folder: the run folder.
    notes: what was chosen, one line each.
    """

    config: TrainConfig
    world: World
    device: torch.device
    folder: RunFolder
    notes: tuple[str, ...]


@contextmanager
def open_run(config: TrainConfig, world: World) -> Iterator[OpenRun]:
    """Check what can be checked without the data, and hold the run folder and the number of threads in the context.

    Raises:
        ValueError: the model is unknown or cannot have these widths, or the device is unavailable.
        RunFolderError, FolderInUseError: see `RunFolder`.
    """
    named = registered(config.model)
    if named is not None:
        with_widths(named, config.widths, config.width_divisor)
    with ExitStack() as stack:
        stack.enter_context(threads_of_rank(config.threads, world))
        device = device_of_rank(config.device, world)
        config, notes = _with_precision(config, device)
        folder = stack.enter_context(RunFolder(config, writes=world.is_main))
        yield OpenRun(config, world, device, folder, notes)


@dataclass(frozen=True)
class RunInputs:
    """What the phases of a run start from.

    run: the open run.
    dataset, data: the data set, and its splits on the device.
    fingerprint: fingerprint of the data.
    architecture: network to train.
    teacher: external teacher of the family; None without one.
    notes: what was chosen, found or left out, one line each; those of `run` come first.
    """

    run: OpenRun
    dataset: ImageDataset
    data: DeviceData
    fingerprint: DataFingerprint
    architecture: Architecture
    teacher: Teacher | None
    notes: tuple[str, ...]

    @classmethod
    def load(cls, run: OpenRun) -> RunInputs:
        """Load data, network and teacher, and check that all ranks have the same. Collective.

        Raises:
            DataError: the data set is unavailable, damaged or not what the config expects.
            ValueError, TypeError, FileNotFoundError, ImportError: network, teacher or initial weights cannot be loaded.
            OtherRankError: another rank has raised an error.
        """
        config, world, device = run.config, run.world, run.device
        dataset = first_on_each_machine(world, lambda: dataset_of(config))
        with failing_together(world):
            data = DeviceData.of(dataset, config, device)
            fingerprint = DataFingerprint.of(dataset)
            architecture = model_of(config, Images(data.in_channels, dataset.image_size, data.num_classes))
            teacher = load_teacher(config, dataset, data, device, world.size, architecture)
            notes = _notes(run, data, architecture, teacher)
        check_same_run(world, config, fingerprint, None if teacher is None else teacher.fingerprint)
        return cls(run, dataset, data, fingerprint, architecture, teacher, notes)

    def phase(self, name: str, results: dict[str, PhaseResult]) -> Phase:
        """Build the phase `name`, one of `phase_names`; see `Phase`. Collective.

        Args:
            results: results of the phases before it, by name.
        """
        run = self.run
        task = phase_task(name, run.config, self.data, results, self.teacher, self.architecture)
        return Phase(task, run.config, self.data, run.folder, run.device, self.fingerprint, run.world)


def _with_precision(config: TrainConfig, device: torch.device) -> tuple[TrainConfig, tuple[str, ...]]:
    """Return the config with the precision that its default or "auto" stands for, and a note about it.

    The default has no note where it is fp32, as it is on all devices but CUDA's.
    """
    if config.precision is None:
        precision = default_precision(device)
        note = f"precision: {precision}, the default on {device.type} (--precision fp32 computes in float32)"
        return replace(config, precision=precision), (note,) if precision != "fp32" else ()
    if config.precision != "auto":
        return config, ()
    precision, why = automatic_precision(device)
    return replace(config, precision=precision), (f"precision: {precision}, since {why}",)


def executor_note(config: TrainConfig, device: torch.device) -> str | None:
    """Return in one line why the students of a family share one stream on CUDA with ``executor="auto"``."""
    why = native.why_no_executor()
    if device.type != "cuda" or config.executor != "auto" or config.family_objective.alone or why is None:
        return None
    return f"executor: students run one after the other on one stream, since the compiled executor is missing ({why})"


def _notes(run: OpenRun, data: DeviceData, architecture: Architecture, teacher: Teacher | None) -> tuple[str, ...]:
    config, notes = run.config, [*run.notes, *data.notes]
    if (note := executor_note(config, run.device)) is not None:
        notes.append(note)
    named = registered(config.model) is not None
    if named:
        notes += width_notes(architecture, config.num_students)
    if teacher is not None:
        notes += teacher_notes(teacher, config)
    if named and config.initial_weights is not None and (note := initial_weights_note(config.initial_weights)):
        notes.append(note)
    return tuple(notes)
