"""One run: its phases trained in order, its students saved, its results written to the run folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import ImageDataset, load_dataset
from oekd_fast.family.saved import GATE_FILE, Normalisation, StudentMetadata, save_gate, save_student
from oekd_fast.family.teacher import Teacher
from oekd_fast.models import get_architecture
from oekd_fast.runs.interrupt import Interrupted, StopRequest
from oekd_fast.runs.phase import DeviceData, Phase, PhaseResult
from oekd_fast.runs.plan import FAMILY, baseline_names, combined_accuracy, phase_names, phase_task
from oekd_fast.runs.run_folder import RunFolder
from oekd_fast.runs.summary import draw_report, summarise


def train(config: TrainConfig, console: Console | None = None, stop: StopRequest | None = None) -> dict[str, Any]:
    """Train the family that `config` describes, and with `config.baseline` each student alone.

    Args:
        stop: tells the caller of several runs whether one came to its end before it could be interrupted.

    Returns:
        What summary.json holds; the run folder is `config.run_folder`.

    Raises:
        DataError, RunFolderError, CheckpointError, TrainingDiverged, Interrupted, ValueError: see those classes.
        FileNotFoundError: the file of the teacher or of the initial weights is missing.
    """
    console = console or Console()
    start = time.perf_counter()
    get_architecture(config.model)
    device = choose_device(config.device)
    folder = RunFolder(config)
    with stop or StopRequest() as stop:
        dataset = dataset_of(config)
        data = DeviceData.of(dataset, config, device)
        for note in data.notes:
            console.print(note, soft_wrap=True, markup=False)

        teacher = _teacher(config, data)
        results: dict[str, PhaseResult] = {}
        names = phase_names(config)
        for name in names:
            phase = Phase(phase_task(name, config, data, results, teacher), config, data, folder, device)
            folder.claim(config)
            folder.write_metrics([line for done in results.values() for line in done.history] + phase.history)
            results[name] = phase.run(stop, console)
            if stop.signal_number is not None and name != names[-1]:
                raise Interrupted(f"{name}: finished, stopped before the next; --resume continues", stop.signal_number)
            if name == FAMILY:
                combined = combined_accuracy(config, phase, results, data, dataset.test.labels)

        seconds = time.perf_counter() - start
        summary = summarise(config, results, device, seconds, dataset.image_size, combined)
        _save_students(folder.students, dataset, data, results[FAMILY])
        for name in baseline_names(config) if config.baseline else ():
            _save_students(folder.baselines, dataset, data, results[name])
        folder.write_summary(summary)
        draw_report(folder.report_file, config, summary, results)
    return summary


def dataset_of(config: TrainConfig) -> ImageDataset:
    """The data set that `config` trains on, as it asks for it.

    Raises:
        DataError: it cannot be had.
    """
    return load_dataset(
        config.dataset,
        data_dir=config.data_dir,
        train_images=config.train_images,
        validation_fraction=config.validation_fraction,
        seed=config.seed,
        stream=config.data_placement == "stream",
        augmentation=config.augmentation_choice,
        image_size=config.image_size,
        skip_corrupt=config.skip_corrupt,
    )


def choose_device(name: str) -> torch.device:
    """The device called `name`; "auto" is CUDA where there is a device.

    Raises:
        ValueError: unknown, or not on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {name!r} cannot be used here ({str(error).splitlines()[0]})") from error
    return device


def _teacher(config: TrainConfig, data: DeviceData) -> Teacher | None:
    """The teacher from outside the run, refused here rather than after the phases before the one that it teaches."""
    if config.teacher is None:
        return None
    try:
        teacher = Teacher.load(config.teacher)
    except ValueError as error:
        raise ValueError(f"teacher: {error}") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"teacher: {str(error).removeprefix('path: ')}") from error
    teacher.check_fits(data.num_classes, data.in_channels, str(config.teacher))
    blocks = len(get_architecture(config.model).map_channels(0, config.num_students))
    if config.objective == "fitnets" and len(teacher.channels) != blocks:
        raise ValueError(
            f"teacher: expected maps of {blocks} blocks, as {config.model} has, got {len(teacher.channels)} "
            f"in {config.teacher}"
        )
    return teacher


def _save_students(folder: Path, dataset: ImageDataset, data: DeviceData, result: PhaseResult) -> None:
    folder.mkdir(exist_ok=True)
    for j, accuracy in zip(result.ensemble.members, result.test.accuracy, strict=True):
        metadata = StudentMetadata.of(
            result.ensemble,
            j,
            image_size=dataset.image_size,
            classes=dataset.classes,
            normalisation=Normalisation(*data.normalisation),
            accuracy=accuracy,
        )
        save_student(result.ensemble.student(j), folder / f"student_{j + 1}", metadata)
    if result.ensemble.gate is not None:
        save_gate(result.ensemble.gate, folder / GATE_FILE)
