"""One phase of a run: a family (or a student alone, as its baseline) trained from start to end, resumably."""

from __future__ import annotations

import copy
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from oekd_fast.config.data import DataConfig
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import AnyAugmentation, Batches, DataError, ImageDataset, ResizedCrop, place
from oekd_fast.family.ensemble import StudentEnsemble, build_ensemble
from oekd_fast.family.teacher import Teacher
from oekd_fast.models import load_standard_weights
from oekd_fast.runs.checkpoint import (
    capture_random_state,
    load_latest_checkpoint,
    restore_random_state,
    save_checkpoint,
)
from oekd_fast.runs.interrupt import Interrupted, StopRequest
from oekd_fast.runs.progress import PhaseProgress
from oekd_fast.runs.run_folder import RunFolder, check_same_training
from oekd_fast.training.distillation import family_options, label_options
from oekd_fast.training.engine import Engine
from oekd_fast.training.metrics import EpochMetrics


class TrainingDiverged(RuntimeError):
    """The loss is no longer finite; the message says since which step."""


@dataclass(frozen=True)
class DeviceData:
    """The three splits in batches on the device, and what a step does to their images.

    notes: a line for each split that lacks images, or is not where it was to be.
    """

    train: Batches
    validation: Batches
    test: Batches
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]
    augmentation: AnyAugmentation
    num_classes: int
    in_channels: int
    notes: tuple[str, ...]

    @classmethod
    def of(cls, dataset: ImageDataset, config: DataConfig, device: torch.device) -> DeviceData:
        """The splits of `dataset`, which was loaded as `config` says.

        Raises:
            DataError: the config asks for what the data set does not have.
        """
        names = ("train", "validation", "test")
        placed = [place(getattr(dataset, name), device, config.data_placement, name=name) for name in names]
        return cls(
            *(batches for batches, _ in placed),
            normalisation=(
                dataset.normalisation() if config.normalisation == "computed" else dataset.published_normalisation()
            ),
            augmentation=_augmentation(dataset.augmentation, config),
            num_classes=dataset.num_classes,
            in_channels=dataset.in_channels,
            notes=(*dataset.notes, *(note for _, note in placed if note is not None)),
        )


def _augmentation(default: AnyAugmentation, config: DataConfig) -> AnyAugmentation:
    """The data set's augmentation with what `config` says otherwise."""
    if config.augmentation_choice == "none":
        return default
    if isinstance(default, ResizedCrop) and config.pad is not None:
        raise DataError(f"pad: {config.dataset} has resized crops, which have no padding, got {config.pad}")
    changes = {"pad": config.pad, "flip": config.flip}
    return replace(default, **{name: value for name, value in changes.items() if value is not None})


@dataclass(frozen=True)
class PhaseTask:
    """What a phase trains.

    name: of its checkpoints and metrics.
    members: of the family; a family of one has no ensemble to learn from.
    from_labels: by cross-entropy alone, as a baseline; otherwise by the config's objective.
    epochs: None: the config's.
    teacher: beside or in place of the family.
    start: whose base and students it begins with.
    """

    name: str
    members: tuple[int, ...]
    from_labels: bool = False
    epochs: int | None = None
    teacher: Teacher | None = None
    start: StudentEnsemble | None = None


@dataclass(frozen=True)
class PhaseResult:
    """A finished phase. `ensemble` holds the weights of the selected epoch, `snapshots` those of each cycle's end."""

    ensemble: StudentEnsemble
    selected_epoch: int
    history: list[dict[str, Any]]
    test: EpochMetrics
    last_test: EpochMetrics
    seconds: float
    images_per_second: float
    snapshots: tuple[dict[str, Any], ...] = ()


class Phase:
    """Trains the members of a task.

    The epoch is chosen by the mean validation accuracy of the students, then by their cross-entropy; the test split
    is looked at when everything is decided, and with `track_test` also written down after each epoch.

    Raises:
        TrainingDiverged: a loss that is not finite; the last checkpoint from before it stays.
        Interrupted: SIGINT or SIGTERM; a checkpoint was written after the step at hand.
        RunFolderError: the checkpoint belongs to another config.
        DataError: the training split does not fill one batch of two images.
    """

    def __init__(
        self, task: PhaseTask, config: TrainConfig, data: DeviceData, folder: RunFolder, device: torch.device
    ) -> None:
        self.name, self._config, self._data, self._folder, self._device = task.name, config, data, folder, device
        self._epochs = config.epochs if task.epochs is None else task.epochs
        self._takes_snapshots = config.objective == "snapshot" and not task.from_labels
        self._batch_size = min(config.batch_size, len(data.train))
        if self._batch_size < 2:
            raise DataError(f"batch_size: training needs batches of at least 2 images, got {self._batch_size}")
        self._batches = data.train.num_batches(self._batch_size, drop_last=True)

        # Every phase starts from the same seed: a baseline sees the batches that the family saw.
        random.seed(config.seed)
        np.random.seed(config.seed)
        torch.manual_seed(config.seed)
        ensemble = _build(task, config, data)
        memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.engine = Engine(
            replace(
                config,
                epochs=self._epochs,
                freeze_base=config.freeze_base and not task.from_labels,
                # There is nothing else to balance labels with.
                ce_schedule="constant" if task.from_labels else config.ce_schedule,
            ),
            ensemble.to(device, memory_format=memory_format),
            label_options(config) if task.from_labels else family_options(config),
            device=device,
            normalisation=data.normalisation,
            augmentation=data.augmentation,
            steps_per_epoch=self._batches,
            teacher=task.teacher,
        )
        self._order_generator = torch.Generator().manual_seed(config.seed)
        self._generators = {
            "order": self._order_generator,
            "augmentation": self.engine.augmentation_generator,
        }
        self._order = torch.empty(0, dtype=torch.int64)
        self._epoch = self._batch = 0
        self._seconds = self._epoch_seconds = 0.0
        self._eager_unsaid = True
        self._best: dict[str, Any] = {}
        self._snapshots: list[dict[str, Any]] = []
        self.history: list[dict[str, Any]] = []
        if config.resume:
            self._restore()

    @property
    def steps_done(self) -> int:
        return self._epoch * self._batches + self._batch

    def run(self, stop: StopRequest, console: Console) -> PhaseResult:
        config = self._config
        with PhaseProgress(
            console, self.name, self._epochs, self._batches, self.steps_done, config.progress
        ) as progress:
            while self._epoch < self._epochs:
                metrics = self._train_epoch(stop, progress)
                self._finish_epoch(metrics, progress)
                if stop.signal_number is not None and self._epoch < self._epochs:
                    self._stop(stop.signal_number)
        return self._result()

    def _train_epoch(self, stop: StopRequest, progress: PhaseProgress) -> EpochMetrics:
        engine, size = self.engine, self._batch_size
        if self._batch == 0:
            self._order = self._data.train.order(self._order_generator)
            self._epoch_seconds = 0.0
            engine.metrics.reset()
        start = time.perf_counter() - self._epoch_seconds
        engine.begin_epoch(self._data.train, self._order, size, first=self._batch)
        while self._batch < self._batches:
            rate = engine.schedule.rate
            engine.step()
            self._batch += 1
            progress.step(size, rate)
            self._say_if_eager(progress)
            if stop.signal_number is not None and self._batch < self._batches:
                self._epoch_seconds = time.perf_counter() - start
                self._check_finite(engine.metrics.read())
                self._stop(stop.signal_number)
        metrics = engine.metrics.read()
        self._epoch_seconds = time.perf_counter() - start
        self._check_finite(metrics)
        return metrics

    def _say_if_eager(self, progress: PhaseProgress) -> None:
        why = self.engine.eager_because
        if self._eager_unsaid and self._device.type == "cuda" and self._config.capture and why is not None:
            progress.note(f"{self.name}: steps are launched one operation at a time, not as one graph: {why}")
            self._eager_unsaid = False

    def _finish_epoch(self, metrics: EpochMetrics, progress: PhaseProgress) -> None:
        rate = self.engine.schedule.rate
        validation = self.engine.evaluate(self._data.validation)
        self._seconds += self._epoch_seconds
        self._epoch, self._batch = self._epoch + 1, 0
        line = {
            "phase": self.name,
            "epoch": self._epoch,
            "step": self.steps_done,
            "learning_rate": rate,
            "train": metrics.as_dict(),
            "validation": validation.as_dict(),
            "seconds": round(self._epoch_seconds, 3),
            "images_per_second": round(metrics.images / self._epoch_seconds, 1),
        }
        if self._config.track_test:
            line["test"] = self.engine.evaluate(self._data.test).as_dict()
        self.history.append(line)
        score = [sum(validation.accuracy) / len(validation.accuracy), -sum(validation.ce)]
        if not self._best or score > self._best["score"]:
            model = copy.deepcopy(self.engine.evaluated.state_dict())
            self._best = {"epoch": self._epoch, "score": score, "model": model}
        if self._takes_snapshots and self._cycle(self._epoch) != self._cycle(self._epoch - 1):
            self._snapshots.append(copy.deepcopy(self.engine.evaluated.state_dict()))
        if self._epoch % self._config.checkpoint_every == 0 or self._epoch == self._epochs:
            self._save()
        self._folder.add_metrics(line)
        progress.epoch(line)

    def _cycle(self, epoch: int) -> int:
        """In which cycle of the rate an epoch is; counted from 0."""
        return epoch * self._config.snapshots // self._epochs

    def _check_finite(self, metrics: EpochMetrics) -> None:
        if metrics.first_bad_step is None:
            return
        step = self._epoch * self._batches + metrics.first_bad_step
        if metrics.labels_out_of_range:
            advice = f"The labels are to blame: expected classes 0 to {self._data.num_classes - 1}"
        else:
            rate = self._config.peak_rate
            advice = f"A lower learning_rate (now {rate:g}) or a longer warmup_epochs may help"
        raise TrainingDiverged(
            f"{self.name}: the loss is not finite since step {step} (epoch {self._epoch + 1}); nothing was saved after "
            f"it, the last good checkpoint stays in {self._folder.checkpoints(self.name)}. {advice}"
        )

    def _stop(self, signal_number: int) -> None:
        path = self._save()
        raise Interrupted(
            f"{self.name}: stopped after step {self.steps_done} and saved {path}; --resume continues",
            signal_number,
        )

    def _save(self) -> Path:
        state = {
            "config": self._config.training_fields(),
            "engine": self.engine.state_dict(),
            "random": capture_random_state(self._generators),
            "order": self._order,
            "epoch": self._epoch,
            "batch": self._batch,
            "seconds": self._seconds,
            "epoch_seconds": self._epoch_seconds,
            "best": self._best,
            "snapshots": self._snapshots,
            "history": self.history,
        }
        return save_checkpoint(self._folder.checkpoints(self.name), state, self.steps_done)

    def _restore(self) -> None:
        folder = self._folder.checkpoints(self.name)
        loaded = load_latest_checkpoint(folder, self._device)
        if loaded is None:
            return
        state = loaded.state
        check_same_training(state["config"], self._config, str(loaded.path))
        self.engine.load_state_dict(state["engine"])
        restore_random_state(state["random"], self._generators)
        self._order = state["order"].cpu()
        self._epoch, self._batch = state["epoch"], state["batch"]
        self._seconds, self._epoch_seconds = state["seconds"], state["epoch_seconds"]
        self._best, self.history = state["best"], state["history"]
        self._snapshots = state.get("snapshots", [])

    def _result(self) -> PhaseResult:
        ensemble = self.engine.evaluated
        last_test = test = self.engine.evaluate(self._data.test)
        if self._best["epoch"] != self._epoch:
            ensemble.load_state_dict(self._best["model"])
            test = self.engine.evaluate(self._data.test)
        images = len(self.history) * self._batches * self._batch_size
        return PhaseResult(
            ensemble=copy.deepcopy(ensemble).eval(),  # the engine's may be given other weights yet
            selected_epoch=self._best["epoch"],
            history=self.history,
            test=test,
            last_test=last_test,
            seconds=self._seconds,
            images_per_second=images / self._seconds,
            snapshots=tuple(self._snapshots),
        )


def _build(task: PhaseTask, config: TrainConfig, data: DeviceData) -> StudentEnsemble:
    by_objective, teacher = not task.from_labels, task.teacher
    ensemble = build_ensemble(
        config.model,
        config.num_students,
        data.num_classes,
        data.in_channels,
        task.members,
        gated=by_objective and config.family_objective.gated,
        hint_channels=teacher.channels if teacher is not None and config.objective == "fitnets" else None,
    )
    if config.initial_weights is not None:
        _load_published(ensemble, config.initial_weights)
    if task.start is not None:
        ensemble.base.load_state_dict(task.start.base.state_dict())
        for j in task.start.members:
            ensemble.student(j).branch.load_state_dict(task.start.student(j).branch.state_dict())
    return ensemble


def _load_published(ensemble: StudentEnsemble, path: Path) -> None:
    """Into student 1 and the base; of a student alone the base, as it has it in the family, or gains would differ."""
    holder = ensemble
    if 0 not in ensemble.members:
        with torch.random.fork_rng(devices=[]):  # what is drawn here is not kept
            holder = build_ensemble(
                ensemble.architecture, ensemble.num_students, ensemble.num_classes, ensemble.in_channels, (0,)
            )
    try:
        load_standard_weights(holder.student(0), path, classifier="auto")
    except (TypeError, ValueError) as error:
        raise ValueError(f"initial_weights: {error}") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"initial_weights: {path} is missing") from error
    if holder is not ensemble:
        ensemble.base.load_state_dict(holder.base.state_dict())
