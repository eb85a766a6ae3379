"""Rehearsal of a phase: some timed steps, an evaluation and a checkpoint in memory, of which nothing is kept."""

from __future__ import annotations

import copy
import io
import json
import time
from dataclasses import dataclass
from statistics import mean

import torch

from oekd_fast.data import Batches, place
from oekd_fast.distributed.world import World
from oekd_fast.runs.phase import Phase
from oekd_fast.runs.set_up import RunInputs
from oekd_fast.runs.time_left import PhaseWork
from oekd_fast.training.evaluation import BATCH_SIZE
from oekd_fast.training.metrics import EpochMetrics

WARM_UP_STEPS = 3  # at most; a step that is long needs fewer
LEAST_SAMPLES, MOST_SAMPLES = 2, 20
_SHORT = (
    0.05  # seconds; shorter steps are timed several at a time, since the host waits for the device after each sample
)
_LONG = 2.0  # seconds of an evaluation


@dataclass(frozen=True)
class Range:
    """An estimate and its bounds, in seconds."""

    low: float
    expected: float
    high: float

    def __add__(self, other: Range | float) -> Range:
        if not isinstance(other, Range):
            other = Range(other, other, other)
        return Range(self.low + other.low, self.expected + other.expected, self.high + other.high)

    def __mul__(self, factor: float) -> Range:
        return Range(factor * self.low, factor * self.expected, factor * self.high)

    @classmethod
    def of(cls, samples: list[float]) -> Range:
        """Return the mean of `samples`, with the least and the greatest of them as bounds."""
        return cls(min(samples), mean(samples), max(samples))


@dataclass(frozen=True)
class Rehearsal:
    """What the parts of a phase took, in seconds.

    warm_up: the first steps, beyond what as many later ones take.
    step: a later step, on a whole batch of images of full size.
    validation, test: evaluation of the validation and of the test images.
    checkpoint: serialisation of a checkpoint.
    checkpoint_bytes, model_bytes: size of a checkpoint, and of the weights in it.
    metrics: results of the evaluated images.
    """

    warm_up: float
    step: Range
    validation: float
    test: float
    checkpoint: float
    checkpoint_bytes: int
    model_bytes: int
    metrics: EpochMetrics


def rehearse(phase: Phase, work: PhaseWork, inputs: RunInputs, seconds: float) -> Rehearsal:
    """Train `phase` for some steps, evaluate it and serialise its state, without writing. Collective.

    The steps are those of the epoch with the highest cost, which has the highest peak of memory.

    Args:
        phase: a phase that is not used afterwards, since it has trained further than its files say.
        work: length of the phase and costs of its epochs.
        seconds: time that the steps take at most, if three steps fit into it.
    """
    world = inputs.run.world
    epoch = max(range(work.epochs), key=work.cost)
    warm_up, samples = _time_steps(_Steps(phase, inputs.data.train, epoch), seconds, world)
    step = Range.of(samples)
    evaluation, metrics = _time_evaluation(phase, inputs)
    start = time.perf_counter()
    # A checkpoint holds the weights of the best epoch too.
    model = copy.deepcopy(phase.engine.evaluator.ensemble.state_dict())
    buffer = io.BytesIO()
    torch.save({"engine": phase.engine.state_dict(), "model": model}, buffer)
    return Rehearsal(
        warm_up=max(0.0, sum(warm_up) - len(warm_up) * step.expected),
        step=step * (1.0 / work.cost(epoch)),
        validation=evaluation * len(inputs.data.validation),
        test=evaluation * len(inputs.data.test),
        checkpoint=time.perf_counter() - start,
        checkpoint_bytes=buffer.tell(),
        model_bytes=sum(tensor.numel() * tensor.element_size() for tensor in model.values()),
        metrics=metrics,
    )


class _Steps:
    """Steps of a phase that begin the epoch `epoch` again where it ends."""

    def __init__(self, phase: Phase, train: Batches, epoch: int) -> None:
        self._phase, self._train, self._left, self._epoch = phase, train, 0, epoch
        self._generator = torch.Generator().manual_seed(0)

    def seconds(self, count: int) -> float:
        """Train `count` steps and return the mean time of one."""
        phase, engine = self._phase, self._phase.engine
        start = time.perf_counter()
        for _ in range(count):
            if self._left == 0:
                order = self._train.order(self._generator)
                engine.begin_epoch(self._train, order, phase.batch_size, epoch=self._epoch)
                self._left = phase.steps_per_epoch
            engine.step()
            self._left -= 1
        engine.metrics.read()  # waits for the device
        return (time.perf_counter() - start) / count


def _time_steps(steps: _Steps, limit: float, world: World) -> tuple[list[float], list[float]]:
    """Return the seconds of each of the first steps, and those of later ones, a mean for each sample."""
    warm_up = [steps.seconds(1)]
    while len(warm_up) < WARM_UP_STEPS and _agreed(world, int(sum(warm_up) < limit / 4)):
        warm_up.append(steps.seconds(1))
    least = max(min(warm_up), 1e-6)
    count = _agreed(world, max(1, round(_SHORT / least)))
    number = min(MOST_SAMPLES, max(LEAST_SAMPLES, int((limit - sum(warm_up)) / (count * least))))
    return warm_up, [steps.seconds(count) for _ in range(_agreed(world, number))]


def _time_evaluation(phase: Phase, inputs: RunInputs) -> tuple[float, EpochMetrics]:
    """Evaluate a batch as large as the run does; return the seconds an image, and the results."""
    run, dataset = inputs.run, inputs.dataset
    split = max(dataset.validation, dataset.test, key=len)
    rounds = -(-len(split) // (BATCH_SIZE * run.world.size))
    images = split.select(torch.arange(-(-len(split) // rounds)))
    batches, _ = place(images, run.device, run.config.data_placement, name="evaluation")

    def evaluated() -> tuple[float, EpochMetrics]:
        start = time.perf_counter()
        metrics = phase.engine.evaluator.evaluate(batches)
        return (time.perf_counter() - start) / len(images), metrics

    first = evaluated()
    is_short = _agreed(run.world, int(first[0] * len(images) < _LONG))
    return evaluated() if is_short else first  # a long one is hardly longer at the first time


def _agreed(world: World, number: int) -> int:
    """Return the number of rank 0, so that all ranks do the same."""
    return json.loads(world.from_main(json.dumps(number).encode() if world.is_main else None))
