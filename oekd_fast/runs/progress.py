"""Progress of a run while it trains: a bar an epoch on a terminal or in a notebook, and a line an epoch."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any

from rich.cells import cell_len
from rich.console import Console

from oekd_fast.common.quantities import clock_text
from oekd_fast.common.text import plain, print_line, shortened
from oekd_fast.runs.bars import Figures, bar_for, left_text, loss_text, speed_text
from oekd_fast.runs.time_left import TimeLeft

_MOST_LINES = 100  # of a phase in a file
_INTERVAL = 0.5  # seconds between two drawings of the bar
_SHORTEST_NAME = 3


class RunProgress:
    """Progress of all phases of a run.

    A terminal shows a bar for each epoch and a line for each finished one; a notebook shows the bar in one output of
    the cell. Elsewhere, as in a file, there are lines only, and of a phase with more than 100 epochs every n-th one,
    so that there are about 100 at most; then all lines are of evaluated epochs, or all evaluated epochs have lines.

    Args:
        console: where progress is shown.
        time_left: estimates the time that the run still needs; None shows nothing but the notes.
        clock: returns the time in seconds.
    """

    def __init__(
        self, console: Console, time_left: TimeLeft | None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.console, self.time_left, self.clock = console, time_left, clock
        self.bar = None if time_left is None else bar_for(console)
        self._start = clock()

    def __enter__(self) -> RunProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            outcome = "trained" if kind is None else "stopped"
            self.bar.end_run(f"{outcome} after {clock_text(self.clock() - self._start)}")

    def phase(self, name: str, epochs: int, steps_per_epoch: int, done: int, evaluate_every: int = 1) -> PhaseProgress:
        """Return the progress of a phase, a context in which it trains.

        Args:
            name: name of the phase.
            epochs, steps_per_epoch: its length.
            done: steps that an earlier, interrupted run has done.
            evaluate_every: epochs from one evaluation to the next.
        """
        return PhaseProgress(self, name, epochs, steps_per_epoch, done, evaluate_every)


class PhaseProgress:
    """Progress of one phase; see `RunProgress.phase`. Nothing here synchronises with the device."""

    def __init__(
        self, run: RunProgress, name: str, epochs: int, steps_per_epoch: int, done: int, evaluate_every: int
    ) -> None:
        self._run, self._time_left = run, run.time_left
        self._name, self._epochs, self._steps = name, epochs, steps_per_epoch
        self._print_every = 1 if run.console.is_interactive else _printed_every(epochs, evaluate_every)
        self._epoch, self._step = divmod(done, steps_per_epoch)  # finished epochs, and steps of the next one
        self._images, self._shown = 0, run.clock()
        self._figures = Figures(name, self._epoch + 1, epochs)

    def __enter__(self) -> PhaseProgress:
        if self._time_left is not None:
            self._time_left.begin(self._name, self._epoch + self._step / self._steps)
        self._show()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._time_left is not None:
            self._time_left.end()
        if self._run.bar is not None:
            self._run.bar.end_phase()

    def step(self, images: int, learning_rate: float, loss: Callable[[], float | None]) -> None:
        """Count a step; the figures are renewed twice a second.

        Args:
            images: images in the step.
            learning_rate: learning rate of the step.
            loss: returns the mean loss of the epoch so far, or None if it is unknown; called when figures are renewed.
        """
        if self._time_left is None:
            return
        self._step += 1
        self._images += images
        self._time_left.step(self._step / self._steps)
        now = self._run.clock()
        if self._run.bar is None or now - self._shown < _INTERVAL:
            return
        speed, known = self._images / (now - self._shown), loss()
        self._show(
            loss=self._figures.loss if known is None else known, learning_rate=learning_rate, images_per_second=speed
        )
        self._images, self._shown = 0, now

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        print_line(self._run.console, text)

    def epoch(self, line: dict[str, Any]) -> None:
        """Show the results of an epoch; `line` is its line in metrics.jsonl."""
        self._epoch, self._step = line["epoch"], 0
        if self._time_left is None:
            return
        self._time_left.epoch()
        console = self._run.console
        if self._epoch % self._print_every == 0 or self._epoch in (1, self._epochs):
            print_line(console, epoch_line(line, self._epochs, self._time_left.seconds(), console.width))
        self._show(loss=line["train"]["loss"])
        # The next rate excludes the time of evaluation and saving.
        self._images, self._shown = 0, self._run.clock()

    def _show(self, **changes: Any) -> None:
        """Show the bar of the next epoch, unless all are done, with the figures before and `changes`."""
        if self._run.bar is None or self._epoch == self._epochs:
            return
        epoch, done = self._epoch + 1, self._step / self._steps
        left = self._time_left.seconds()
        self._figures = replace(self._figures, epoch=epoch, done=done, seconds_left=left, **changes)
        self._run.bar.show(self._figures)


def _printed_every(epochs: int, evaluate_every: int) -> int:
    """Return the epochs from one line in a file to the next.

    That is the least number that gives about `_MOST_LINES` lines, and with which each line is that of an evaluated
    epoch, or each evaluated epoch has a line.
    """
    least = -(-epochs // _MOST_LINES)
    return next(n for n in itertools.count(least) if n % evaluate_every == 0 or evaluate_every % n == 0)


def epoch_line(line: dict[str, Any], epochs: int, seconds_left: float | None, width: int) -> str:
    """Return an epoch in one line: training loss, validation accuracy of every student, speed and time left.

    An epoch that was not evaluated has no accuracies.

    Args:
        line: line of the epoch in metrics.jsonl.
        epochs: number of epochs of the phase.
        seconds_left: seconds that the run still needs; None if they are unknown.
        width: columns of the output. Where the line is longer, the speed is left out, then the time left and the loss;
            then accuracies have no decimals, and the name of the phase is shortened and left out. The accuracies are
            never left out, even if the terminal has to wrap them.
    """
    name, epoch = plain(line["phase"]), f"{line['epoch']:>{len(str(epochs))}}/{epochs}"
    loss = loss_text(line["train"]["loss"])
    exact, rounded = (_accuracies(line, digits) for digits in (1, 0))
    speed, left = speed_text(line["images_per_second"]), left_text(seconds_left)
    room = max(_SHORTEST_NAME, width - cell_len("  ".join(filter(None, (f" {epoch}", rounded)))))
    forms = (
        (f"{name} {epoch}", loss, exact, speed, left),
        (f"{name} {epoch}", loss, exact, left),
        (f"{name} {epoch}", loss, exact),
        (f"{name} {epoch}", exact),
        (f"{shortened(name, room)} {epoch}", rounded),
        (epoch, rounded),
    )
    texts = ["  ".join(filter(None, form)) for form in forms]
    return next((text for text in texts if cell_len(text) <= width), texts[-1])


def _accuracies(line: dict[str, Any], digits: int) -> str:
    """Return "val 98.1 97.0 %", or nothing for an epoch that was not evaluated."""
    if "validation" not in line:
        return ""
    return f"val {' '.join(f'{value:.{digits}f}' for value in line['validation']['accuracy'])} %"
