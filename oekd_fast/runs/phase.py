"""One phase of a run: a family, or one student alone as its baseline, trained from start to end and resumably."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from oekd_fast.common import devices
from oekd_fast.common.tensors import not_finite
from oekd_fast.config.evaluated_epochs import EvaluatedEpochs
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import DataError
from oekd_fast.data.known import same_data_name
from oekd_fast.distributed.agreement import failing_together
from oekd_fast.distributed.grid import StudentGrid
from oekd_fast.distributed.world import ALONE, World
from oekd_fast.family.ensemble import StudentEnsemble
from oekd_fast.runs.build import build_family
from oekd_fast.runs.checkpoint import CheckpointError, LoadedCheckpoint, save_checkpoint
from oekd_fast.runs.data_fingerprint import DataFingerprint
from oekd_fast.runs.device_data import DeviceData
from oekd_fast.runs.external_teacher import fingerprint_difference
from oekd_fast.runs.interrupt import Interrupted
from oekd_fast.runs.phase_state import PhaseState, mean_accuracy
from oekd_fast.runs.progress import PhaseProgress, RunProgress
from oekd_fast.runs.random_state import capture_random_state, restore_random_state, seed_everything
from oekd_fast.runs.rank_state import load_latest_on_all, rank_generators, restore_rank_generator, seed_rank
from oekd_fast.runs.ranks import check_same_weights, raise_on_main, student_grid
from oekd_fast.runs.run_folder import RunFolder, RunFolderError, check_same_training
from oekd_fast.runs.stop_vote import StopVote
from oekd_fast.runs.tasks import PhaseResult, PhaseTask
from oekd_fast.training.channel_padding import without_padding
from oekd_fast.training.distillation import family_options, label_options
from oekd_fast.training.engine import Engine
from oekd_fast.training.metrics import EpochMetrics
from oekd_fast.training.prepare import prepare_family


class TrainingDiverged(RuntimeError):
    """The loss or a weight is no longer finite; the message names the first step where it was noticed."""


class Phase:
    """Trains the members of a task.

    The validation images are evaluated after each `config.evaluate_every`-th epoch and after the last one. Of these
    epochs, the one with the highest mean validation accuracy of the students is selected, ties broken by their
    cross-entropy. The test split is evaluated after the selection. With `config.track_test` it is also evaluated with
    the validation images, for the record alone. With `config.patience` the phase ends early at the first evaluation at
    which that accuracy has not risen for so many epochs, on all ranks alike, because an evaluation gives all ranks the
    same numbers.

    Args:
        task, config, data, folder, device: what is trained, how, on which images, where it is saved, on which device.
        fingerprint: fingerprint of `data`, which checkpoints store; None stores none.
        world: ranks that train the phase together. Constructor and methods are then collective: if one rank raises,
            the others raise OtherRankError or LostRankError.

    Attributes:
        name: name of the task.
        engine: trains and evaluates the family.
        epochs, steps_per_epoch, batch_size: length of the phase, and images of a step over all ranks.

    Raises:
        TrainingDiverged: a loss or a weight is not finite; the last checkpoint before that stays.
        Interrupted: the run was asked to stop; a checkpoint was written after the current step.
        RunFolderError: the checkpoint to resume from belongs to another config or to other data.
        CheckpointError: the checkpoint to resume from does not hold the state of this phase.
        DataError: the training split holds fewer than two images for each micro-batch of each rank, or the batch size
            is below that.
    """

    def __init__(
        self,
        task: PhaseTask,
        config: TrainConfig,
        data: DeviceData,
        folder: RunFolder,
        device: torch.device,
        fingerprint: DataFingerprint | None = None,
        world: World = ALONE,
    ) -> None:
        self.name, self._config, self._data, self._folder, self._device = task.name, config, data, folder, device
        self._fingerprint, self._world = fingerprint, world
        self._teacher = None if task.teacher is None else task.teacher.fingerprint
        self.epochs = config.epochs if task.epochs is None else task.epochs
        self._evaluated = EvaluatedEpochs(self.epochs, config.evaluate_every)
        self._takes_snapshots = config.objective == "snapshot" and not task.from_labels
        self.batch_size = min(config.batch_size, len(data.train))
        self._noted_eager = False
        with failing_together(world):
            self.steps_per_epoch = data.train.num_batches(self.batch_size, drop_last=True)
            seed_everything(config.seed)  # every phase, so that a baseline sees the same batches as the family
            ensemble = _build_ensemble(task, config, data, device)
        grid = student_grid(ensemble, config, data.train.image_shape, device, world)
        with failing_together(world):
            _check_batch_size(self.batch_size, world if grid is None else grid.data, config)
            self.engine = _build_engine(
                task, ensemble, config, data, device, self.epochs, self.steps_per_epoch, world, grid
            )
            seed_rank(config.seed, world if grid is None else grid.data)
        self._generators = {"order": torch.Generator().manual_seed(config.seed), **self.engine.generators}
        self._state = PhaseState()
        if config.resume:
            self._restore()
        check_same_weights(world, self.engine.ensemble)

    @property
    def steps_done(self) -> int:
        return self._state.epoch * self.steps_per_epoch + self._state.batch

    @property
    def history(self) -> list[dict[str, Any]]:
        """One line of metrics.jsonl for each finished epoch."""
        return self._state.history

    @property
    def _stopped_early(self) -> bool:
        """Whether the last evaluation found no higher accuracy for `config.patience` epochs, and some are left."""
        patience = self._config.patience
        return patience is not None and self._state.stale_epochs >= patience and self._state.epoch < self.epochs

    @property
    def finished(self) -> bool:
        """Whether no epoch is left to train."""
        return self._state.epoch == self.epochs or self._stopped_early

    def run(self, stop: StopVote, shown: RunProgress) -> PhaseResult:
        """Train the remaining epochs and return the result."""
        length = self.epochs, self.steps_per_epoch
        with shown.phase(self.name, *length, self.steps_done, self._config.evaluate_every) as progress:
            while not self.finished:
                metrics = self._train_epoch(stop, progress)
                self._finish_epoch(metrics, progress)
                stop.ask()
                if stop.signal_number is not None and not self.finished:
                    self._save_and_stop(stop)
            if self._stopped_early:
                ended = f"{self.name}: ended after epoch {self._state.epoch} of {self.epochs}"
                progress.note(f"{ended}, without a higher validation accuracy for {self._state.stale_epochs}")
        return self._result()

    def _train_epoch(self, stop: StopVote, progress: PhaseProgress) -> EpochMetrics:
        engine, state = self.engine, self._state
        if state.batch == 0:
            state.order = self._data.train.order(self._generators["order"])
            state.epoch_seconds = 0.0
            engine.metrics.reset()
        start = time.perf_counter() - state.epoch_seconds
        engine.begin_epoch(self._data.train, state.order, self.batch_size, first=state.batch, epoch=state.epoch)
        while state.batch < self.steps_per_epoch:
            rate = engine.schedule.rate
            stop.begin()
            engine.step()
            stop.end()
            state.batch += 1
            progress.step(self.batch_size, rate, engine.metrics.loss_so_far)
            self._note_eager_steps(progress)
            if stop.signal_number is not None and state.batch < self.steps_per_epoch:
                state.epoch_seconds = time.perf_counter() - start
                self._check_finite(engine.metrics.read())
                self._save_and_stop(stop)
        metrics = engine.metrics.read()  # waits for the device
        state.epoch_seconds = time.perf_counter() - start
        self._check_finite(metrics)
        return metrics

    def _note_eager_steps(self, progress: PhaseProgress) -> None:
        """Say once why steps on CUDA are not replayed from a graph, unless the config has turned that off."""
        why = self.engine.eager_because
        if why is not None and not self._noted_eager and self._device.type == "cuda" and self._config.capture:
            progress.note(f"{self.name}: steps are launched one operation at a time, not as one graph: {why}")
            self._noted_eager = True

    def _finish_epoch(self, metrics: EpochMetrics, progress: PhaseProgress) -> None:
        config, state, evaluator = self._config, self._state, self.engine.evaluator
        state.seconds += state.epoch_seconds
        state.epoch, state.batch = state.epoch + 1, 0
        line = {
            "phase": self.name,
            "epoch": state.epoch,
            "step": self.steps_done,
            "learning_rate": self.engine.schedule.rate,
            "train": metrics.as_dict(),
            **(self._evaluate() if state.epoch in self._evaluated else {}),
            "seconds": round(state.epoch_seconds, 3),
            "images_per_second": round(self.steps_per_epoch * self.batch_size / state.epoch_seconds, 1),
        }
        state.history.append(line)
        if self._takes_snapshots and self._cycle(state.epoch) != self._cycle(state.epoch - 1):
            state.snapshots.append(copy.deepcopy(evaluator.ensemble.state_dict()))
        if state.epoch % config.checkpoint_every == 0 or self.finished:
            self._save()
        self._folder.add_metrics(line)
        progress.epoch(line)

    def _evaluate(self) -> dict[str, Any]:
        """Evaluate the finished epoch, keep its weights if it is the best, and return what its line records of it."""
        state, evaluator, start = self._state, self.engine.evaluator, time.perf_counter()
        validation = evaluator.evaluate(self._data.validation)
        results = {"validation": validation.as_dict()}
        if self._config.track_test:
            results["test"] = evaluator.evaluate(self._data.test).as_dict()
        results["evaluation_seconds"] = round(time.perf_counter() - start, 3)
        score = [mean_accuracy(validation.accuracy), -sum(validation.ce)]
        if state.is_best(score):
            model = copy.deepcopy(evaluator.ensemble.state_dict())
            state.best = {"epoch": state.epoch, "score": score, "model": model}
        return results

    def _cycle(self, epoch: int) -> int:
        """Return the cycle of the learning rate after `epoch` epochs, counted from 0."""
        return epoch * self._config.snapshots // self.epochs

    def _check_finite(self, metrics: EpochMetrics) -> None:
        self.engine.collect()  # all ranks have to find the same
        epoch, what = self._state.epoch, "the loss is"
        if metrics.first_bad_step is not None:
            step = epoch * self.steps_per_epoch + metrics.first_bad_step
        elif (name := not_finite(self.engine.evaluator.ensemble.state_dict())) is not None:
            # The next step would show it in its loss, but the last one has none, and what is saved must be loadable.
            what, step = f"the weights {name} are", epoch * self.steps_per_epoch + self._state.batch
        else:
            return
        if metrics.labels_out_of_range:
            advice = f"Labels are out of range: expected classes 0 to {self._data.num_classes - 1}"
        else:
            rate = self._config.peak_rate
            advice = f"A lower learning_rate (now {rate:g}) or a longer warmup_epochs may help"
        message = (
            f"{self.name}: {what} not finite since step {step} (epoch {epoch + 1}); nothing was saved after it, "
            f"the last good checkpoint stays in {self._folder.checkpoints(self.name)}. {advice}"
        )
        raise_on_main(self._world, TrainingDiverged(message))

    def _save_and_stop(self, stop: StopVote) -> None:
        path = self._save()
        raise Interrupted(
            f"{self.name}: {stop.reason}stopped after step {self.steps_done} and saved {path}; --resume continues",
            stop.signal_number,
        )

    def _save(self) -> Path:
        state = {
            "config": self._config.training_fields(),
            "data": None if self._fingerprint is None else self._fingerprint.as_dict(),
            "teacher": self._teacher,
            "engine": self.engine.state_dict(),
            "random": capture_random_state(self._generators),
            **self._state.state_dict(),
        }
        folder = self._folder.checkpoints(self.name)
        if self._world.size > 1:
            state["rank_generators"] = rank_generators(self.engine.network_generator, self._world)
        if not self._world.is_main:
            return folder
        return save_checkpoint(self._folder.make_folder(folder), state, self.steps_done)

    def _restore(self) -> None:
        """Continue from the latest checkpoint if there is one."""
        # The sums of the metrics are float64 and would not load on other devices; the parts move the rest to theirs.
        where = self._device if devices.has_float64(self._device) else "cpu"
        loaded = load_latest_on_all(self._folder.checkpoints(self.name), where, self._world)
        if loaded is None:
            return
        with failing_together(self._world):
            self._load(loaded)

    def _load(self, loaded: LoadedCheckpoint) -> None:
        try:
            check_same_training(loaded.state["config"], self._config, str(loaded.path))
            self._check_same_data(loaded)
            self._check_same_teacher(loaded)
            self.engine.load_state_dict(loaded.state["engine"])
            restore_random_state(loaded.state["random"], self._generators)
            self._state = PhaseState.from_state_dict(loaded.state)
            ranks = loaded.state.get("rank_generators", [])
            restore_rank_generator(
                self.engine.network_generator, ranks, self._world, self._config.seed, self.steps_done
            )
        except RunFolderError:
            raise
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise CheckpointError(
                f"{loaded.path} does not hold the state of the phase {self.name} ({reason})"
            ) from error

    def _check_same_data(self, loaded: LoadedCheckpoint) -> None:
        """Raise RunFolderError unless the checkpoint was trained on the data of this phase."""
        before, now = loaded.state["config"].get("dataset"), self._config.dataset
        stored = loaded.state.get("data")  # version 0.1.0 stored none
        if stored is None or self._fingerprint is None:
            if before is not None and not same_data_name(before, now):
                raise RunFolderError(
                    f"dataset: expected {before!r}, got {now!r}; {loaded.path} does not record what its data holds, "
                    "so that the data cannot be compared"
                )
            return
        difference = DataFingerprint.from_dict(stored).differences(self._fingerprint)
        if difference is not None:
            raise RunFolderError(
                f"dataset: {now!r} differs from the data that {loaded.path} was trained on; {difference}"
            )

    def _check_same_teacher(self, loaded: LoadedCheckpoint) -> None:
        """Raise RunFolderError unless the checkpoint was trained with the teacher of this phase."""
        stored = loaded.state.get("teacher")  # version 0.1.0 stored none
        if stored is not None and self._teacher is not None and stored != self._teacher:
            raise RunFolderError(
                f"teacher: {self._config.teacher} differs from the teacher of {loaded.path}; "
                f"{fingerprint_difference(stored, self._teacher)}"
            )

    def _result(self) -> PhaseResult:
        state, evaluator = self._state, self.engine.evaluator
        last_test = test = evaluator.evaluate(self._data.test)
        if state.best["epoch"] != state.epoch:
            evaluator.ensemble.load_state_dict(state.best["model"])
            test = evaluator.evaluate(self._data.test)
        images = len(state.history) * self.steps_per_epoch * self.batch_size
        return PhaseResult(
            ensemble=without_padding(evaluator.ensemble).eval(),  # the engine's may be given other weights later
            selected_epoch=state.best["epoch"],
            history=state.history,
            test=test,
            last_test=last_test,
            seconds=state.seconds,
            images_per_second=images / state.seconds,
            snapshots=tuple(state.snapshots),
            stopped_early=self._stopped_early,
            flipped_test=evaluator.evaluate(self._data.test, flips=True) if self._config.test_flips else None,
        )


def _check_batch_size(batch_size: int, world: World, config: TrainConfig) -> None:
    least = 2 * config.micro_batches  # of a rank; BatchNorm needs two images
    kept = round(batch_size // world.size * (config.keep_hardest or 1.0))
    if kept < least:
        ranks = "" if world.size == 1 else f" on {world.size} ranks"
        parts = "" if config.micro_batches == 1 else f" in {config.micro_batches} micro-batches"
        needed, got = f"{least * world.size} images{ranks}{parts}", f"{batch_size}"
        if config.keep_hardest is not None:
            got += f", of which keep_hardest={config.keep_hardest:g} keeps {kept * world.size}"
        raise DataError(f"batch_size: training needs batches of at least {needed}, got {got}")


def _build_ensemble(task: PhaseTask, config: TrainConfig, data: DeviceData, device: torch.device) -> StudentEnsemble:
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    return build_family(task, config, data.num_classes, data.in_channels).to(device, memory_format=memory_format)


def _build_engine(
    task: PhaseTask,
    ensemble: StudentEnsemble,
    config: TrainConfig,
    data: DeviceData,
    device: torch.device,
    epochs: int,
    steps_per_epoch: int,
    world: World,
    grid: StudentGrid | None,
) -> Engine:
    training = replace(
        config,
        epochs=epochs,
        freeze_base=config.freeze_base and not task.from_labels,
        # A loss of labels alone has no other term to balance them with.
        ce_schedule="constant" if task.from_labels else config.ce_schedule,
    )
    return Engine(
        training,
        prepare_family(ensemble, training, world),
        (label_options if task.from_labels else family_options)(config, data.class_weights),
        device=device,
        normalisation=data.normalisation,
        augmentation=data.augmentation,
        steps_per_epoch=steps_per_epoch,
        teacher=task.teacher,
        world=world,
        grid=grid,
    )
