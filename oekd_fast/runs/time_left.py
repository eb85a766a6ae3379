"""Time that a run still needs, from measured epochs and the operations of phases that were not measured."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

import numpy as np

from oekd_fast.config.evaluated_epochs import EvaluatedEpochs

_LEAST_SECONDS = 1.0  # of steps, before they are taken for a measurement
_EPOCHS_KEPT = 5


@dataclass(frozen=True)
class PhaseWork:
    """Length of a phase, and what its epochs cost in relation to those of other phases.

    Args:
        name: name of the phase.
        epochs: number of epochs.
        students: number of students.
        flops: operations of the forward pass of all its students for one image.
        evaluation: duration of an evaluation in relation to the training of an epoch, until an epoch was measured.
        closing: the same for all evaluations after the last epoch.
        evaluate_every: epochs from one evaluation to the next.
        costs: operations of the steps of each epoch, in relation to steps on whole batches of images of full size; 1
            for all epochs if it is empty.
    """

    name: str
    epochs: int
    students: int
    flops: float
    evaluation: float = 0.0
    closing: float = 0.0
    evaluate_every: int = 1
    costs: tuple[float, ...] = ()

    def cost(self, epoch: int) -> float:
        """Return the cost of epoch number `epoch`, counted from 0."""
        return self.costs[epoch] if epoch < len(self.costs) else 1.0

    def cost_after(self, done: int) -> float:
        """Return the cost of all epochs after the first `done` ones."""
        return sum(self.cost(epoch) for epoch in range(done, self.epochs))

    @property
    def evaluated(self) -> EvaluatedEpochs:
        """The epochs that end with an evaluation."""
        return EvaluatedEpochs(self.epochs, self.evaluate_every)


class _Epoch(NamedTuple):
    """Seconds of an epoch of cost 1: of its steps, and of what follows them with an evaluation and without one."""

    steps: float
    evaluated: float
    plain: float

    def of_phase(self, work: PhaseWork, done: int = 0) -> float:
        """Return the seconds of all epochs of a phase after the first `done` ones."""
        left, evaluations = work.epochs - done, work.evaluated.after(done)
        return work.cost_after(done) * self.steps + evaluations * self.evaluated + (left - evaluations) * self.plain

    def mean(self, work: PhaseWork) -> float:
        """Return the seconds of an epoch of a phase with its share of the evaluations."""
        return self.of_phase(work) / work.epochs


def _recent() -> deque[float]:
    return deque(maxlen=_EPOCHS_KEPT)


@dataclass
class _Measured:
    """Seconds of the last epochs of a phase: of their steps by their cost, and of what followed the steps."""

    steps: deque[float] = field(default_factory=_recent)
    evaluated: deque[float] = field(default_factory=_recent)
    plain: deque[float] = field(default_factory=_recent)

    def epoch(self, evaluation: float) -> _Epoch:
        """Return the median epoch; until one was evaluated, an evaluation takes `evaluation` times as long as the
        steps."""
        steps, plain = median(self.steps), median(self.plain) if self.plain else 0.0
        return _Epoch(steps, median(self.evaluated) if self.evaluated else evaluation * steps + plain, plain)


class TimeLeft:
    """Estimates the time that a run still needs, over all of its phases.

    An epoch of a phase takes the median of its last epochs, from start to start, so that evaluation and checkpoints are
    included; what follows the steps has one median with an evaluation and one without. Before the first epoch is
    complete, the steps that are done stand for it, without the first one, which takes longer. For a phase that has not
    been measured, an epoch takes a time for each student and a time for each of their operations, which the measured
    phases determine; from a single one, the time is in proportion to the operations. Without a measurement in this
    process there is no estimate.

    Args:
        phases: all phases of the run, in order.
        afterwards: seconds that the run needs after its last phase.
        clock: returns the time in seconds.
    """

    def __init__(
        self, phases: Sequence[PhaseWork], afterwards: float = 0.0, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._phases = list(phases)
        self._names = [work.name for work in phases]
        self._afterwards, self._clock = afterwards, clock
        self._measured: dict[str, _Measured] = {}
        self._current = -1  # number of the phase
        self._epoch, self._share = 0, 0.0  # finished epochs of the phase, and share of the steps of the next one
        self._epoch_start: float | None = None  # None within an epoch that an earlier process began
        self._first: tuple[float, float] | None = None  # time and share after the first step of an epoch
        self._last = (0.0, 0.0)  # the same after the last step so far

    def begin(self, phase: str, epochs: float) -> None:
        """Begin `phase`, of which an earlier process has done `epochs` epochs, the last one perhaps in part."""
        self._current = self._names.index(phase)
        self._epoch, self._share = int(epochs), epochs - int(epochs)
        self._epoch_start, self._first = None if self._share else self._clock(), None

    def step(self, share: float) -> None:
        """Note that `share` of the steps of an epoch are done."""
        self._share, self._last = share, (self._clock(), share)
        if self._first is None:
            self._first = self._last

    def epoch(self) -> None:
        """Note that an epoch is complete, with its evaluation if it has one."""
        now = self._clock()
        if self._epoch_start is not None:
            work = self._phases[self._current]
            kept = self._measured.setdefault(work.name, _Measured())
            kept.steps.append((self._last[0] - self._epoch_start) / work.cost(self._epoch))
            rests = kept.evaluated if self._epoch + 1 in work.evaluated else kept.plain
            rests.append(now - self._last[0])
        self._epoch, self._share, self._epoch_start, self._first = self._epoch + 1, 0.0, now, None

    def end(self) -> None:
        """Note that the phase is over; it may have stopped before its last epoch."""
        self._current, self._epoch, self._share, self._first = self._current + 1, 0, 0.0, None

    def seconds(self) -> float | None:
        """Return the seconds that the run still needs at most; None if nothing was measured."""
        epochs = [self._epoch_of(work) for work in self._phases]
        measured = [(work, epoch.mean(work)) for work, epoch in zip(self._phases, epochs, strict=True) if epoch]
        if not measured:
            return None
        a_student, an_operation = _costs(measured)
        total = self._afterwards
        for number, work in enumerate(self._phases[self._current :], self._current):
            epoch, (done, share) = epochs[number], (self._epoch, self._share) if number == self._current else (0, 0.0)
            if epoch is None:
                seconds = a_student * work.students + an_operation * work.flops
                total += (work.epochs + work.closing - done - share) * seconds
            else:
                begun = share * work.cost(done) * epoch.steps
                total += epoch.of_phase(work, done) - begun + work.closing * epoch.mean(work)
        return max(total, 0.0)

    def _epoch_of(self, work: PhaseWork) -> _Epoch | None:
        """Return the measured duration of an epoch of a phase; None if there is none."""
        if measured := self._measured.get(work.name):
            return measured.epoch(work.evaluation)
        if self._first is None or work.name != self._names[self._current]:
            return None
        seconds, share = (last - first for last, first in zip(self._last, self._first, strict=True))
        if seconds < _LEAST_SECONDS:
            return None
        steps = seconds / share / work.cost(self._epoch)
        return _Epoch(steps, steps * work.evaluation, 0.0)


def _costs(measured: Sequence[tuple[PhaseWork, float]]) -> tuple[float, float]:
    """Return the seconds of an epoch for each student and for each operation, neither of which is negative.

    They have the smallest relative errors, by least squares, for the measured seconds of an epoch.
    """
    students, operations = (
        np.array([getattr(work, name) / seconds for work, seconds in measured]) for name in ("students", "flops")
    )
    scale = operations.max() / students.max()
    (a_student, an_operation), _, rank, _ = np.linalg.lstsq(
        np.stack([students, operations / scale], axis=1), np.ones(len(measured)), rcond=1e-6
    )
    if rank == 1 or a_student < 0:
        return 0.0, operations.sum() / operations.dot(operations)
    if an_operation < 0:
        return students.sum() / students.dot(students), 0.0
    return a_student, an_operation / scale
