"""Time that a run still needs, from measured epochs and the operations of phases that were not measured."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import numpy as np

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
    """

    name: str
    epochs: int
    students: int
    flops: float
    evaluation: float = 0.0
    closing: float = 0.0


class _Epoch(NamedTuple):
    """Seconds of an epoch: of its steps, and of what follows them."""

    steps: float
    rest: float

    @property
    def seconds(self) -> float:
        return self.steps + self.rest


class TimeLeft:
    """Estimates the time that a run still needs, over all of its phases.

    An epoch of a phase takes the median of its last epochs, from start to start, so that evaluation and checkpoints are
    included. Before its first epoch is complete, the steps that are done stand for it, without the first one, which
    takes longer. For a phase that has not been measured, an epoch takes a time for each student and a time for each of
    their operations, which the measured phases determine; from a single one, the time is in proportion to the
    operations. Without a measurement in this process there is no estimate.

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
        self._measured: dict[str, deque[_Epoch]] = {}
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
        """Note that an epoch is complete, with its evaluation."""
        now = self._clock()
        if self._epoch_start is not None:
            kept = self._measured.setdefault(self._names[self._current], deque(maxlen=_EPOCHS_KEPT))
            kept.append(_Epoch(self._last[0] - self._epoch_start, now - self._last[0]))
        self._epoch, self._share, self._epoch_start, self._first = self._epoch + 1, 0.0, now, None

    def end(self) -> None:
        """Note that the phase is over; it may have stopped before its last epoch."""
        self._current, self._epoch, self._share, self._first = self._current + 1, 0, 0.0, None

    def seconds(self) -> float | None:
        """Return the seconds that the run still needs at most; None if nothing was measured."""
        epochs = [self._epoch_of(work) for work in self._phases]
        measured = [(work, epoch.seconds) for work, epoch in zip(self._phases, epochs, strict=True) if epoch]
        if not measured:
            return None
        a_student, an_operation = _costs(measured)
        total = self._afterwards
        for number, work in enumerate(self._phases[self._current :], self._current):
            epoch = epochs[number]
            seconds = a_student * work.students + an_operation * work.flops if epoch is None else epoch.seconds
            total += (work.epochs + work.closing) * seconds
            if number == self._current:
                total -= self._epoch * seconds + self._share * (seconds if epoch is None else epoch.steps)
        return max(total, 0.0)

    def _epoch_of(self, work: PhaseWork) -> _Epoch | None:
        """Return the measured duration of an epoch of a phase; None if there is none."""
        if epochs := self._measured.get(work.name):
            return _Epoch(*map(median, zip(*epochs, strict=True)))
        if self._first is None or work.name != self._names[self._current]:
            return None
        seconds, share = (last - first for last, first in zip(self._last, self._first, strict=True))
        return None if seconds < _LEAST_SECONDS else _Epoch(seconds / share, seconds / share * work.evaluation)


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
