"""The training step of a family of students, eager or replayed from a CUDA graph."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from oekd_fast.common import devices
from oekd_fast.common.part import Part
from oekd_fast.config.epoch_work import EpochWork, epoch_work
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import AnyAugmentation, Batches
from oekd_fast.distributed.grid import StudentGrid
from oekd_fast.distributed.world import ALONE, World
from oekd_fast.family.ensemble import StudentEnsemble
from oekd_fast.family.teacher import Statistics, Teacher
from oekd_fast.losses.calls import KDOptions
from oekd_fast.parallel.executor import SequentialExecutor, make_executor
from oekd_fast.training.backward import (
    Backward,
    FamilyLosses,
    StepTerms,
    backward_as_one,
    backward_side_by_side,
    forward_side_by_side,
)
from oekd_fast.training.batch_source import BatchSource
from oekd_fast.training.comparisons import comparison_of
from oekd_fast.training.cuda_recorder import CudaRecorder
from oekd_fast.training.data_parallel import (
    agreement,
    check_grid,
    executor_kind,
    family_buckets,
    no_buckets,
    shared_modules,
    student_modules,
)
from oekd_fast.training.distillation import TeacherSignals
from oekd_fast.training.evaluation import Evaluator
from oekd_fast.training.graph_capture import CapturedCalls, Recorder
from oekd_fast.training.hardest import hardest_rows, kept_part
from oekd_fast.training.metrics import RunningMetrics
from oekd_fast.training.micro_batches import mean_losses
from oekd_fast.training.numerics import LossScaler, Numerics, TrainingForward
from oekd_fast.training.optimizer import OptimizerState, build_optimizer
from oekd_fast.training.preprocessing import Preprocessing
from oekd_fast.training.schedule import Schedule
from oekd_fast.training.stateful import ModuleState, Parts, load_part_states, part_states, part_tensors
from oekd_fast.training.student_parallel import OwnStudents, clip_gradients, collect, share_overflow
from oekd_fast.training.weight_average import WeightAverage


class Engine:
    """A family, its optimizer and schedule, and the step that trains it.

    The host never waits for the device within a step. On CUDA the whole step, from fetching the batch to counting
    correct predictions, is therefore one graph. A family of one student learns from labels and an external teacher
    alone.

    Attributes:
        ensemble: the family that steps train.
        optimizer, scaler, schedule: the optimizer, its loss scaling and its scheduled values.
        average: moving average of the weights; None unless `config.ema_decay` is set.
        metrics: sums over the steps since their last reset.
        evaluator: evaluates the averaged family if there is one, else the trained one.
        generators: the generators that steps draw from beside `network_generator`, on the device: "augmentation" of
            crops and flips, and "mixing" if images are mixed. Captured steps prepare the next batch too; the states
            are those without its draws.
        buckets: what the ranks exchange in each step.
        network_generator: the generator that the networks draw from, for dropout and the like.

    Args:
        config: options of the training.
        ensemble: on `device`, prepared by `prepare_family`.
        loss: options of the loss on the logits.
        normalisation: mean and standard deviation of each channel, for pixels in [0, 1].
        augmentation: random changes to training images; evaluation uses the centre crop that belongs to them.
        steps_per_epoch: length of an epoch, for the schedule.
        teacher: external teacher of every student; None without one.
        recorder: captures steps. None captures with CUDA graphs on CUDA, and nothing on other devices.
        world: ranks that train the family together. Each of them computes its part of a batch, and all of them then
            have the same weights and running statistics.
        grid: how the ranks of `world` share the students; None: each of them computes all. Between two calls of
            `collect`, a rank then has the current weights of its own students and of the base alone.

    Raises:
        ValueError: `config` asks for the loss on feature maps, and `ensemble` was built with `adapters=False`; or
            `grid` is given for a training whose students cannot be on several ranks.
    """

    def __init__(
        self,
        config: TrainConfig,
        ensemble: StudentEnsemble,
        loss: KDOptions,
        *,
        device: torch.device,
        normalisation: Statistics,
        augmentation: AnyAugmentation,
        steps_per_epoch: int,
        teacher: Teacher | None = None,
        recorder: Recorder | None = None,
        world: World = ALONE,
        grid: StudentGrid | None = None,
    ) -> None:
        memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.ensemble = ensemble
        self.schedule = Schedule(config, loss, steps_per_epoch, device)
        self.optimizer = build_optimizer(config, ensemble, self.schedule.learning_rate, self.schedule.adapter_rate)
        self.scaler = LossScaler(device, enabled=config.precision == "fp16")
        self.metrics = RunningMetrics(
            len(ensemble.members), device, world, counts_images=grid is None or grid.column == 0
        )
        self.average = None if config.ema_decay is None else WeightAverage(ensemble)
        learns_from_others = loss.mixing is not None
        self._copies = WeightAverage(ensemble) if learns_from_others and config.codistillation_delay else None
        self._teaching = self.average if learns_from_others and config.learn_from_average else self._copies
        # Everything that a step changes, except its position in the batches; the names are those in checkpoints.
        self._parts: Parts = {
            "model": ModuleState(ensemble),
            "optimizer": OptimizerState(self.optimizer, ensemble),
            "schedule": self.schedule,
            "scaler": self.scaler,
            "metrics": self.metrics,
            "average": self.average,
            "copies": self._copies,
        }
        self._teacher = None if teacher is None else teacher.to(device, memory_format=memory_format)
        self._preprocessing = Preprocessing(augmentation, normalisation, memory_format, device)
        self.network_generator = _default_generator(device)
        self._numerics = Numerics.of(config, device)
        kind, members = executor_kind(config, world), ensemble.members
        deterministic = config.deterministic
        self._executor = make_executor(kind, len(members), device, deterministic=deterministic, members=members)
        tensors = {"mixing": loss.mixing, "weight": loss.weight}
        self._loss_options = vars(loss) | {n: None if t is None else t.to(device) for n, t in tensors.items()}
        self._backward: Backward = backward_side_by_side if loss.detach_ensemble else backward_as_one
        self._of_step = self._executor
        if grid is not None:
            check_grid(config, loss, self._teaching)
            self._backward = OwnStudents(grid, exact=config.deterministic)
            own = [members[j] for j in grid.own]
            self._of_step = make_executor(kind, len(own), device, deterministic=deterministic, members=own)
        self._base_gradients = config.base_gradients
        self._freeze_base = config.freeze_base
        self._config, self._work = config, EpochWork()
        self._compares_features = _compares_features(ensemble, config.loss_weights.feature_weight)
        self._comparison = comparison_of(config, ensemble)
        self._teacher_inputs = config.family_objective.features == "fed"
        self._clip_norm, self._micro_batches = config.clip_norm, config.micro_batches
        self._grid, self._data_world = grid, world if grid is None else grid.data
        self.buckets = family_buckets(ensemble, world, device, grid, exact=config.deterministic)
        self._no_buckets = no_buckets(self.buckets)

        why = self._why_eager(config, device, recorder)
        recorder = None if why else recorder or CudaRecorder(device, config.rank_timeout if world.size > 1 else None)
        self._source = BatchSource(
            config, self._preprocessing, alternate_flips=augmentation.alternate, num_classes=ensemble.num_classes,
            device=device, world=self._data_world, ahead=recorder is not None,
        )  # fmt: skip
        self.generators = self._source.generators
        generators = [*self._source.drawn_from.values(), self.network_generator]
        self._calls = CapturedCalls(
            recorder,
            generators,
            eager_because=why,
            after_failure=self.scaler.abandon_step,
            agree=None if world.size == 1 else agreement(world),
        )
        # Evaluation exchanges nothing within its calls, so that ranks need not agree whether those are captured.
        of_evaluation = CapturedCalls(recorder, generators, eager_because=why)
        self.evaluator = Evaluator(
            ensemble if self.average is None else self.average.ensemble,
            loss, self._preprocessing, self._numerics, self._executor, of_evaluation, device, world,
        )  # fmt: skip

    @property
    def eager_because(self) -> str | None:
        """Why steps are not replayed from a graph, in one line; None while they are."""
        return self._calls.eager_because

    @property
    def executor_kind(self) -> Literal["parallel", "sequential"]:
        """How the students of a step run."""
        return "sequential" if isinstance(self._of_step, SequentialExecutor) else "parallel"

    def begin_epoch(self, batches: Batches, order: Tensor, batch_size: int, first: int = 0, epoch: int = 0) -> None:
        """Have the next steps train on the batches of `order`, from batch number `first` on; see `Batches.begin`.

        All ranks pass the same arguments; `batch_size` counts the images of a step over all ranks, and `epoch`, from 0
        on, decides which images are flipped if flips alternate, and the size and the share of the images that are
        trained on if the config changes them.
        """
        self._work = epoch_work(self._config, epoch, self._config.epochs)
        self._source.begin_epoch(batches, order, batch_size, first, epoch)

    def step(self) -> None:
        """Train on the next batch of the epoch, by a replay of the captured step if there is one.

        Raises:
            RuntimeError: `begin_epoch` was not called, or the epoch has no batch left.
        """
        self._source.ready()
        self._calls.run("train", (self._source.signature, self._work), self._train_on_next_batch, self.tensors)
        self.schedule.count()

    def train_step(self, images: Tensor, labels: Tensor) -> None:
        """Train eagerly on a given batch, which is the same on all ranks. Its flips are random and do not alternate.

        Args:
            images: uint8 [B, C, H, W] on the device.
            labels: int64 [B] on the device.
        """
        part = self._data_world.part(len(labels))
        self._train_on(*self._source.augmented(images[part.rows], labels[part.rows], part), part)
        self.schedule.count()

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor that `step` changes, by name."""
        return part_tensors(self._parts) | self._source.tensors()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all that steps change, as a checkpoint holds it. Random generators are not included.

        Collective: the sums of the metrics are those over all ranks, and all students are collected.
        """
        self.collect()
        return part_states(self._parts)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        load_part_states(self._parts, state)
        self._calls.forget()  # captured steps write to the optimizer's tensors, which have been replaced

    def _train_on_next_batch(self) -> None:
        with self._source.next_batch() as (pixels, target):
            self._train_on(pixels, target, self._source.part)

    def _train_on(self, pixels: Tensor, target: Tensor, part: Part) -> None:
        with self._numerics.algorithms():
            schedule = self.schedule
            if self._work.kept < 1:
                pixels, target, part = self._hardest(pixels, target, part)
            self.ensemble.train()
            if self._freeze_base:
                self.ensemble.base.eval()  # BatchNorm's statistics are frozen too
            schedule.load()
            self.optimizer.zero_grad(set_to_none=True)
            losses = self._accumulate(pixels, target, part)
            self.buckets.finish()
            if self._grid is not None and self.scaler.enabled:
                share_overflow(self._grid, self._own_parameters())
            if self._clip_norm is not None:
                self.scaler.unscale(self.optimizer)
                self._clip()
            self.scaler.step(self.optimizer)
            if self.average is not None:
                self.average.update(schedule.ema_share)
            self.metrics.update(losses.statistics, len(target), losses.feature, losses.total)

    def _accumulate(self, pixels: Tensor, target: Tensor, part: Part) -> FamilyLosses:
        """Add the gradients of all micro-batches to `.grad`, and return the losses of the rows of `part`.

        Losses are means over rows. Each gradient is therefore multiplied by the share of its rows in the batch, so that
        those of all micro-batches of all ranks add up to the gradient of the whole batch, whatever their sizes.
        """
        if self._copies is not None:
            self._copies.update(self.schedule.copy_share)
        if self.buckets.active:
            self.buckets.share.fill_(part.share)
        scale = self.scaler.scale()
        pieces = [part.piece(i, self._micro_batches) for i in range(self._micro_batches)]
        of_pieces = zip(pieces, *(rows.split([p.count for p in pieces]) for rows in (pixels, target)), strict=True)
        losses = []
        for piece, own_pixels, own_target in of_pieces:
            images = self._images(own_pixels)
            terms = self._terms(_scaled(scale, piece, images.device), self._teacher_signals(own_pixels, images))
            buckets = self.buckets if piece is pieces[-1] else self._no_buckets
            losses.append(
                self._backward(
                    self.ensemble, images, own_target, terms, self._of_step, TrainingForward(self._numerics), buckets
                )
            )
        return mean_losses(losses, [piece.count for piece in pieces])

    def _images(self, pixels: Tensor) -> Tensor:
        """Return the input of the networks in a step of this epoch, for augmented pixels in uint8."""
        return self._preprocessing.resized(self._preprocessing.normalised(pixels), self._work.side)

    def _hardest(self, pixels: Tensor, target: Tensor, part: Part) -> tuple[Tensor, Tensor, Part]:
        """Return the images of `part` that are trained on, their target, and their part of those of all ranks."""
        kept = kept_part(part.of, self._work.kept, self._data_world)
        with self._numerics.autocast():
            rows = hardest_rows(self.ensemble, self._images(pixels), target, kept.count)
        return pixels[rows], target[rows], kept

    def _terms(self, grad_scale: Tensor | None, signals: TeacherSignals) -> StepTerms:
        return StepTerms(
            self._loss_options | self.schedule.of_loss,
            feature_weight=self.schedule.feature_weight if self._compares_features else None,
            grad_scale=grad_scale,
            signals=signals,
            base_learns_from_all=self._base_gradients != "pseudo_teacher",
            base_learns_from_features=self._base_gradients != "without_features",
            base_learns_from_mean=self._base_gradients == "mean",
            comparison=self._comparison,
            teacher_inputs=self._teacher_inputs,
        )

    def collect(self) -> None:
        """Bring the weights and the optimizer's state of all students to all ranks, after steps. Collective."""
        if self._grid is not None:
            families = [self.ensemble] if self.average is None else [self.ensemble, self.average.ensemble]
            collect(self._grid, [student_modules(family) for family in families], self.optimizer)

    def _own_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the students that this rank computes."""
        modules = student_modules(self.ensemble)
        return [p for j in self._grid.own for module in modules[j] for p in module.parameters()]

    def _clip(self) -> None:
        if self._grid is None:
            torch.nn.utils.clip_grad_norm_(self.ensemble.parameters(), self._clip_norm)
            return
        shared = [p for module in shared_modules(self.ensemble) for p in module.parameters()]
        clip_gradients(self._grid, self._own_parameters(), shared, self._clip_norm)

    @torch.no_grad()
    def _teacher_signals(self, pixels: Tensor, images: Tensor) -> TeacherSignals:
        """Return the teacher signals for a batch, given as augmented pixels (uint8) and as normalised images."""
        with self._numerics.autocast():
            if self._teacher is not None:
                logits, maps = self._teacher(pixels, self._preprocessing.memory_format)
                return TeacherSignals(logits, maps if self.ensemble.hinted else None)
            if self._teaching is not None:
                output, _ = forward_side_by_side(self._teaching.ensemble, images, self._executor)
                return TeacherSignals(copies=output.logits)
        return TeacherSignals()

    def _why_eager(self, config: TrainConfig, device: torch.device, recorder: Recorder | None) -> str | None:
        """Return why steps cannot be captured, known before the first one."""
        if not config.capture:
            return "capture is off"
        if recorder is None and device.type != "cuda":
            return f"{device.type} has no CUDA graphs"
        if self.scaler.waits_for_device(self.optimizer):
            return f"{config.optimizer} reads on the host whether fp16 gradients are finite"
        return None


def _scaled(scale: Tensor | None, part: Part, device: torch.device) -> Tensor | None:
    """Return `scale` times the share of `part` in its batch, a scalar on the device; None if both are 1."""
    if part.share == 1:
        return scale
    # Float32 would round shares such as 31/63.
    dtype = torch.float64 if devices.has_float64(device) else torch.float32
    share = torch.full((), part.share, dtype=dtype, device=device)
    return share if scale is None else scale * share


def _compares_features(ensemble: StudentEnsemble, feature_weight: float) -> bool:
    """Return whether the loss has a term for feature maps.

    Raises:
        ValueError: it should have, but the family was built without adapters.
    """
    if feature_weight == 0:
        return False
    if 0 in ensemble.members and len(ensemble.members) > 1 and not ensemble.adapters:
        if not ensemble.architecture.map_channels(0, ensemble.num_students):  # students without maps
            return False
        raise ValueError(
            f"ensemble: expected adapters, since feature_weight is {feature_weight:g}, got a family built with "
            "adapters=False"
        )
    return len(ensemble.adapters) > 0


def _default_generator(device: torch.device) -> torch.Generator:
    """Return the default generator of `device`."""
    if device.type != "cuda":
        return torch.default_generator
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.cuda.default_generators[index]
