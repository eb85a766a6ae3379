"""Progress of a phase while it trains: a bar on a terminal, some lines elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_LINES = 8  # lines per phase where there is no terminal


class PhaseProgress:
    """Progress of one phase. `step` does not synchronise with the device.

    Args:
        console: where progress is shown.
        phase: name of the phase.
        epochs, steps_per_epoch: its length.
        done: steps that an earlier, interrupted run has done.
        enabled: False shows nothing.
    """

    def __init__(
        self, console: Console, phase: str, epochs: int, steps_per_epoch: int, done: int, enabled: bool
    ) -> None:
        self._console, self._phase, self._epochs = console, phase, epochs
        self._enabled = enabled
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}  {task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            expand=True,
            disable=not (enabled and console.is_terminal),
        )
        total = epochs * steps_per_epoch
        epoch = min(epochs, done // steps_per_epoch + 1)
        self._task = self._bar.add_task(phase, total=total, completed=done, epoch=epoch, epochs=epochs, figures="")
        self._rate, self._loss = 0.0, ""
        self._images, self._shown = 0, time.perf_counter()

    def __enter__(self) -> PhaseProgress:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def step(self, images: int, learning_rate: float) -> None:
        """Count a step; the figures are renewed a few times a second.

        Args:
            images: images in the step.
            learning_rate: learning rate of the step.
        """
        self._images += images
        elapsed = time.perf_counter() - self._shown
        if elapsed > 0.25:
            self._rate = self._images / elapsed
            self._images, self._shown = 0, time.perf_counter()
        figures = f"{self._loss}lr {learning_rate:.3g}  {self._rate:.0f} img/s"
        self._bar.update(self._task, advance=1, figures=figures)

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, soft_wrap=True, markup=False)

    def epoch(self, line: dict[str, Any]) -> None:
        """Show the results of an epoch; `line` is its line in metrics.jsonl."""
        self._loss = f"loss {line['train']['loss']:#.4g}  "
        epoch = line["epoch"]
        self._bar.update(self._task, epoch=min(epoch + 1, self._epochs))
        every = -(-self._epochs // _LINES)
        if self._enabled and not self._console.is_terminal and (epoch % every == 0 or epoch == self._epochs):
            accuracies = " ".join(f"{value:.1f}" for value in line["validation"]["accuracy"])
            self._console.print(
                f"{self._phase} epoch {epoch}/{self._epochs}  {self._loss}val {accuracies} %  "
                f"{line['images_per_second']:.0f} img/s",
                soft_wrap=True,
            )
        # The next rate excludes the time of evaluation and saving.
        self._images, self._shown = 0, time.perf_counter()
