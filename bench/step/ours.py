"""The training step of oekd_fast.training.engine."""

from __future__ import annotations

from typing import Any

import torch

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import DeviceBatches
from oekd_fast.distributed.grid import StudentGrid
from oekd_fast.distributed.world import ALONE, World
from oekd_fast.family.flops import family_flops
from oekd_fast.training.distillation import family_options, label_options
from oekd_fast.training.engine import Engine
from oekd_fast.training.graph_capture import Recorder
from oekd_fast.training.prepare import prepare_family

from .problem import (
    ADAPTER_RATE,
    CE_WEIGHT,
    FEATURE_WEIGHT,
    KD_WEIGHT,
    MEAN,
    MOMENTUM,
    STD,
    TEMPERATURE,
    WEIGHT_DECAY,
    StepProblem,
)


def make_engine(
    problem: StepProblem,
    members: tuple[int, ...] | None,
    *,
    capture: bool,
    executor: str,
    recorder: Recorder | None = None,
    world: World = ALONE,
    student_ranks: int = 1,
    **options: Any,
) -> Engine:
    """Build the engine of this rank of `world`, with a constant learning rate; `options` are of TrainConfig."""
    config = TrainConfig(
        model=problem.model,
        num_students=problem.num_students,
        batch_size=problem.batch_size,
        precision=problem.precision,
        temperature=TEMPERATURE,
        ce_weight=CE_WEIGHT,
        feature_weight=FEATURE_WEIGHT,
        kd_weight=KD_WEIGHT,
        learning_rate=problem.learning_rate,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        adapter_rate=ADAPTER_RATE,
        milestones=(),
        warmup_epochs=0,
        capture=capture,
        executor=executor,
        **options,
    )
    family = problem.family(members).to(problem.device, memory_format=torch.channels_last)
    grid = None
    if student_ranks > 1:
        costs = family_flops(family, problem.image_size).branches
        grid = StudentGrid.of(world, costs, student_ranks, problem.device)
    return Engine(
        config,
        prepare_family(family, config, world),
        family_options(config) if len(family.members) > 1 else label_options(config),
        device=torch.device(problem.device),
        normalisation=(MEAN, STD),
        augmentation=problem.augmentation,
        steps_per_epoch=problem.batches,
        recorder=recorder,
        world=world,
        grid=grid,
    )


class OurStep:
    """The step of our engine.

    Args:
        members: Students to train; None is the whole family.
        capture: Capture the step as one CUDA graph.
        executor: As in TrainConfig; "sequential" on CUDA is one stream.
        recorder: Captures the steps; None for CUDA graphs.
        world: Ranks that share the batch; the default process group exists if there are several.
        student_ranks: Ranks that share the students.
        options: Other options of TrainConfig.
    """

    def __init__(
        self,
        problem: StepProblem,
        members: tuple[int, ...] | None = None,
        *,
        capture: bool = False,
        executor: str = "auto",
        recorder: Recorder | None = None,
        world: World = ALONE,
        student_ranks: int = 1,
        **options: Any,
    ) -> None:
        self.engine = make_engine(
            problem, members, capture=capture, executor=executor, recorder=recorder, world=world,
            student_ranks=student_ranks, **options,
        )  # fmt: skip
        self.family, self.optimizer = self.engine.ensemble, self.engine.optimizer
        self._batches = DeviceBatches(problem.split(), torch.device(problem.device))
        self._order, self._size = problem.order(), problem.batch_size
        self._per_epoch, self._batch = problem.batches, 0

    @property
    def not_captured(self) -> str | None:
        """Why steps are not replayed from a graph, known after the first step, or None if they are."""
        return self.engine.eager_because

    def step(self) -> None:
        if self._batch == 0:
            self.engine.begin_epoch(self._batches, self._order, self._size)
        self.engine.step()
        self._batch = (self._batch + 1) % self._per_epoch

    def take_loss(self) -> float:
        loss = self.engine.metrics.read().loss
        self.engine.metrics.reset()
        return loss


class AloneInTurn:
    """Each student trained alone by our engine; a step trains one after the other on a batch."""

    def __init__(self, problem: StepProblem, *, capture: bool = False) -> None:
        self._students = [OurStep(problem, (j,), capture=capture) for j in range(problem.num_students)]

    @property
    def not_captured(self) -> str | None:
        return next((student.not_captured for student in self._students if student.not_captured), None)

    def step(self) -> None:
        for student in self._students:
            student.step()
