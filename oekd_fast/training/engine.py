"""One training step of a family of students, eager or replayed from a CUDA graph, and its evaluation."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import AnyAugmentation, Batches, augment, centre, normalise, padded_order
from oekd_fast.family.ensemble import StudentEnsemble
from oekd_fast.family.teacher import Teacher
from oekd_fast.layers.direct_conv import use_direct_convs
from oekd_fast.layers.norm_relu import use_fused_norms
from oekd_fast.losses.calls import KDOptions
from oekd_fast.losses.ensemble_kd import ensemble_kd_loss
from oekd_fast.parallel.executor import make_executor
from oekd_fast.training.backward import StepTerms, backward_as_one, backward_side_by_side, forward_side_by_side
from oekd_fast.training.compile_blocks import compile_blocks
from oekd_fast.training.distillation import TeacherSignals
from oekd_fast.training.graph_capture import CaptureError, CudaRecorder, Recorder, RunAhead, State, capture
from oekd_fast.training.metrics import EpochMetrics, RunningMetrics
from oekd_fast.training.optimizer import build_optimizer, load_optimizer, optimizer_state
from oekd_fast.training.schedule import Schedule
from oekd_fast.training.weight_average import WeightAverage

_AUTOCAST_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
EVALUATION_BATCH = 512


class Engine:
    """A family, its optimizer and schedule, and the step that trains it.

    Nothing in the step waits for the device, so that on CUDA all of it, from fetching the batch to counting what was
    right, is one graph. In a family of one student nothing is learnt from others: labels alone, or a teacher.

    Attributes:
        eager_because: why steps are not replayed, in one line; None while they are.

    Args:
        config: of the run.
        ensemble: already on `device`.
        loss: of the logits.
        normalisation: mean and standard deviation a channel, for pixels in [0, 1].
        augmentation: of the training images; evaluation sees the centre that goes with it.
        steps_per_epoch: for the schedule.
        teacher: of every student, beside or in place of the family.
        recorder: captures steps; None: CUDA's on CUDA, none elsewhere.
    """

    def __init__(
        self,
        config: TrainConfig,
        ensemble: StudentEnsemble,
        loss: KDOptions,
        *,
        device: torch.device,
        normalisation: tuple[tuple[float, ...], tuple[float, ...]],
        augmentation: AnyAugmentation,
        steps_per_epoch: int,
        teacher: Teacher | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        use_fused_norms(ensemble)
        use_direct_convs(ensemble)
        if config.freeze_base:
            ensemble.base.requires_grad_(False)
        if config.compile_blocks:
            compile_blocks(ensemble, ensemble.architecture.block_type)
        self.ensemble = ensemble
        self.device = device
        self.schedule = Schedule(config, loss, steps_per_epoch, device)
        self.optimizer = build_optimizer(config, ensemble, self.schedule.learning_rate, self.schedule.adapter_rate)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self._one = torch.ones((), device=device)
        self.scaler.scale(self._one)  # makes the scale, which a captured step must find
        self.average = None if config.ema_decay is None else WeightAverage(ensemble)
        self._teacher = None if teacher is None else teacher.to(device, memory_format=memory_format)
        self._copies = WeightAverage(ensemble) if loss.mixing is not None and config.codistillation_delay else None
        self.metrics = RunningMetrics(len(ensemble.members), device)
        self._evaluation_metrics = RunningMetrics(len(ensemble.members), device)
        self.augmentation_generator = torch.Generator(device).manual_seed(config.seed)
        self.executor = make_executor(
            config.executor, len(ensemble.members), device, deterministic=config.deterministic
        )
        options = dict(vars(loss))
        self._evaluation_options = options | {"mixing": None, "mixing_space": "logits"}
        self._loss_options = options | {"mixing": None if loss.mixing is None else loss.mixing.to(device)}
        self._base_learns_from_all = config.base_gradients == "all"
        self._freeze_base = config.freeze_base
        self._backward = backward_side_by_side if loss.detach_ensemble else backward_as_one
        self._features = bool(len(ensemble.adapters)) and config.loss_weights.feature_weight > 0
        self._clip_norm = config.clip_norm
        self._deterministic = config.deterministic
        self._dtype = _AUTOCAST_DTYPES[config.precision]
        self._mean, self._std = (torch.tensor(values, device=device) for values in normalisation)
        self._augmentation = augmentation
        self._format = memory_format
        self._batches: Batches | None = None
        self._replays: dict[Hashable, tuple[Hashable, Callable[[], None]]] = {}
        self.eager_because: str | None = None
        if not config.capture:
            self.eager_because = "capture is off"
        elif recorder is None and device.type != "cuda":
            self.eager_because = f"there are no graphs on {device.type}"
        elif self.scaler.is_enabled() and not getattr(self.optimizer, "_step_supports_amp_scaling", False):
            self.eager_because = f"after fp16 gradients {config.optimizer} asks on the host whether they are finite"
        else:
            self._recorder = recorder or CudaRecorder(device)
            self._run_ahead = RunAhead(self._recorder)

    # -- training

    def begin_epoch(self, batches: Batches, order: Tensor, batch_size: int, first: int = 0) -> None:
        """Set what the next steps train on: the batches of `order` from number `first` on, see `Batches.begin`."""
        batches.begin(order, batch_size, first)
        self._batches = batches

    def step(self) -> None:
        """Train on the next batch of the epoch: a replay of the captured step, or the step itself."""
        batches = self._batches
        assert batches is not None, "begin_epoch comes first"
        batches.ready()
        self._run("train", batches, self._next_step, self._training_state)
        self.schedule.count()

    def train_step(self, images: Tensor, labels: Tensor) -> None:
        """One eager step on a batch of the caller's; its metrics are added to `metrics`.

        Args:
            images: uint8 [B, C, H, W] on the device.
            labels: int64 [B] on the device.
        """
        self._step(images, labels)
        self.schedule.count()

    def _next_step(self) -> None:
        self._step(*self._batches.take())

    def _step(self, images: Tensor, labels: Tensor) -> None:
        values, scaled = self.schedule, self.scaler.is_enabled()
        self.ensemble.train()
        if self._freeze_base:
            self.ensemble.base.eval()
        values.load()
        self.optimizer.zero_grad(set_to_none=True)
        pixels = augment(images, self._augmentation, self.augmentation_generator)
        images = self._normalise(pixels)
        terms = StepTerms(
            self._loss_options | {name: getattr(values, name) for name in ("temperature", "ce_weight", "kd_weight")},
            feature_weight=values.feature_weight if self._features else None,
            grad_scale=self.scaler.scale(self._one) if scaled else None,
            signals=self._teacher_signals(pixels, images),
            base_learns_from_all=self._base_learns_from_all,
        )
        losses = self._backward(self.ensemble, images, labels, terms, self.executor, self._autocast())
        if self._clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.ensemble.parameters(), self._clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(values.ema_share)
        self.metrics.update(losses.statistics, len(labels), losses.feature, losses.total)

    @torch.no_grad()
    def _teacher_signals(self, pixels: Tensor, images: Tensor) -> TeacherSignals:
        """What others say of a batch: uint8 pixels, and the images made of them."""
        with self._autocast():
            if self._teacher is not None:
                logits, maps = self._teacher(pixels, self._format)
                return TeacherSignals(logits, maps if self.ensemble.hinted else None)
            if self._copies is not None:
                self._copies.update(self.schedule.copy_share)
                output, _ = forward_side_by_side(self._copies.ensemble, images, self.executor)
                return TeacherSignals(copies=output.logits)
        return TeacherSignals()

    # -- evaluation

    @property
    def evaluated(self) -> StudentEnsemble:
        """The family whose results count: the averaged weights where there are any."""
        return self.ensemble if self.average is None else self.average.ensemble

    @torch.no_grad()
    def evaluate(self, batches: Batches) -> EpochMetrics:
        """Every student and the ensemble over a whole split, in evaluation mode."""
        self.evaluated.eval()
        rounds = -(-len(batches) // EVALUATION_BATCH)
        size = -(-len(batches) // max(rounds, 1))  # as even as can be: what pads the last batch is work for nothing
        batches.begin(padded_order(len(batches), size), size)
        self._evaluation_metrics.reset()

        def next_batch() -> None:
            self._evaluate(*batches.take())

        for _ in range(rounds):
            batches.ready()
            self._run(("evaluate", id(batches)), batches, next_batch, lambda: self._evaluation_state(batches))
        return self._evaluation_metrics.read()

    @torch.no_grad()
    def probabilities(self, batches: Batches) -> Tensor:
        """Each student's predictions for a whole split, float32 [S, N, C] on the host, in evaluation mode."""
        self.evaluated.eval()
        size = min(len(batches), EVALUATION_BATCH)
        batches.begin(padded_order(len(batches), size), size)
        parts = []
        for _ in range(-(-len(batches) // size)):
            batches.ready()
            images, _ = batches.take()
            with self._autocast(), self._algorithms():
                images = self._normalise(centre(images, self._augmentation))
                output, _ = forward_side_by_side(self.evaluated, images, self.executor)
            parts.append(torch.stack([z.float().softmax(dim=1).cpu() for z in output.logits]))
        return torch.cat(parts, dim=1)[:, : len(batches)]

    def _evaluate(self, images: Tensor, labels: Tensor) -> None:
        images = self._normalise(centre(images, self._augmentation))
        with self._autocast():
            output, gate = forward_side_by_side(self.evaluated, images, self.executor)
        statistics = ensemble_kd_loss(output.logits, labels, ensemble_weights=gate, **self._evaluation_options)
        rows = (labels != self._loss_options["ignore_index"]).sum()
        self._evaluation_metrics.update(statistics, rows, None, statistics.loss)

    # -- captured or not

    def _run(self, key: Hashable, batches: Batches, call: Callable[[], None], state: Callable[[], State]) -> None:
        """`call`, device work on the next of `batches`: replayed where it can be."""

        def with_algorithms() -> None:
            with self._algorithms():
                call()

        if self.eager_because is None:
            signature, replay = self._replays.get(key, (None, None))
            if replay is None or signature != batches.signature:
                try:
                    replay = capture(with_algorithms, self._recorder, state, self._generators())
                    self._replays[key] = batches.signature, replay
                except CaptureError as error:
                    self.eager_because = str(error)
                    self._replays.clear()
                    self.scaler._per_optimizer_states.clear()  # of a step that ended before the scaler's part
        if self.eager_because is None:
            replay()
            self._run_ahead.launched()
        else:
            with_algorithms()

    def _generators(self) -> list[torch.Generator]:
        """Those that a step draws from."""
        if self.device.type != "cuda":
            return [self.augmentation_generator, torch.default_generator]
        index = torch.cuda.current_device() if self.device.index is None else self.device.index
        return [self.augmentation_generator, torch.cuda.default_generators[index]]

    def _training_state(self) -> State:
        """Every tensor that a step changes."""
        state = {f"model.{name}": tensor for name, tensor in self.ensemble.state_dict().items()}
        state |= {f"optimizer.{name}": tensor for name, tensor in optimizer_state(self.optimizer).items()}
        state |= {f"schedule.{name}": tensor for name, tensor in self.schedule.state().items()}
        if self._copies is not None:
            state |= {f"copies.{name}": tensor for name, tensor in self._copies.ensemble.state_dict().items()}
        if self.average is not None:
            state |= {f"average.{name}": tensor for name, tensor in self.average.ensemble.state_dict().items()}
        if self.scaler.is_enabled():
            state |= {"scale": self.scaler._scale, "growth_tracker": self.scaler._growth_tracker}
        return state | self._counters(self.metrics, self._batches)

    def _evaluation_state(self, batches: Batches) -> State:
        return self._counters(self._evaluation_metrics, batches)

    @staticmethod
    def _counters(metrics: RunningMetrics, batches: Batches) -> State:
        return {"metrics": metrics.sums} | {f"batches.{i}": tensor for i, tensor in enumerate(batches.state())}

    # -- what is saved

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.ensemble.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "metrics": self.metrics.sums.clone(),
            "average": None if self.average is None else self.average.ensemble.state_dict(),
            "copies": None if self._copies is None else self._copies.ensemble.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._replays.clear()  # they write to the optimizer's state, which is replaced
        self.ensemble.load_state_dict(state["model"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.metrics.sums.copy_(state["metrics"])
        if self.average is not None:
            self.average.ensemble.load_state_dict(state["average"])
        if self._copies is not None:
            self._copies.ensemble.load_state_dict(state["copies"])

    def _normalise(self, images: Tensor) -> Tensor:
        return normalise(images, self._mean, self._std, memory_format=self._format)

    def _autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype is not None)

    @contextmanager
    def _algorithms(self) -> Iterator[None]:
        """Shapes never change, so that trying cuDNN's algorithms once pays. The process's own choice comes back."""
        cudnn = torch.backends.cudnn
        before = cudnn.benchmark, cudnn.deterministic
        cudnn.benchmark, cudnn.deterministic = not self._deterministic, self._deterministic
        try:
            yield
        finally:
            cudnn.benchmark, cudnn.deterministic = before
