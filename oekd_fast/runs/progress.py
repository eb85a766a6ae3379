"""Progress of a phase while it trains: a bar on a terminal, some lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.progress import Progress, Task, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from oekd_fast.common.text import encodable, plain, print_line

_LINES = 8  # lines per phase where there is no terminal
_GAP, _SHORTEST_BAR = 2, 8  # in columns of the terminal


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
        # A terminal that cannot move its cursor, such as TERM=dumb, gets lines.
        self._has_bar = console.is_terminal and not console.is_dumb_terminal
        self._bar = _PhaseBar(console=console, disable=not (enabled and self._has_bar))
        self._epoch = min(epochs, done // steps_per_epoch + 1)
        self._task = self._bar.add_task(
            encodable(plain(phase), console.encoding), total=epochs * steps_per_epoch, completed=done,
            epoch=f"{self._epoch}/{epochs}", loss="", learning_rate="", rate="",
        )  # fmt: skip
        self._images_per_second = 0.0
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
            self._images_per_second = self._images / elapsed
            self._images, self._shown = 0, time.perf_counter()
        self._bar.update(
            self._task, advance=1, learning_rate=f"lr {learning_rate:.3g}", rate=f"{self._images_per_second:.0f} img/s"
        )

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        print_line(self._console, text)

    def epoch(self, line: dict[str, Any]) -> None:
        """Show the results of an epoch; `line` is its line in metrics.jsonl."""
        loss, epoch = f"loss {line['train']['loss']:#.4g}", line["epoch"]
        self._bar.update(self._task, epoch=f"{min(epoch + 1, self._epochs)}/{self._epochs}", loss=loss)
        every = -(-self._epochs // _LINES)
        if self._enabled and not self._has_bar and (epoch % every == 0 or epoch == self._epochs):
            accuracies = " ".join(f"{value:.1f}" for value in line["validation"]["accuracy"])
            print_line(
                self._console,
                f"{self._phase} epoch {epoch}/{self._epochs}  {loss}  val {accuracies} %  "
                f"{line['images_per_second']:.0f} img/s",
            )
        # The next rate excludes the time of evaluation and saving.
        self._images, self._shown = 0, time.perf_counter()


class _PhaseBar(Progress):
    """Progress bar of one line, with the figures that fit into the terminal; none is cut."""

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks:
            yield _line(task, self.console.width)


def _line(task: Task, width: int) -> RenderableType:
    """Return the name of the phase, the bar, and the figures of `task` within `width` columns."""
    fields = task.fields
    remaining = TimeRemainingColumn().render(task).plain
    shown = {"epoch": f"epoch {fields['epoch']}", "name": task.description, "loss": fields["loss"]}
    shown |= {"rate": fields["rate"], "remaining": remaining, "learning_rate": fields["learning_rate"]}
    if cell_len(shown["epoch"]) > width:
        shown["epoch"] = fields["epoch"] if cell_len(fields["epoch"]) <= width else f"{task.percentage:.0f}%"
    # The first figures are the most important ones.
    free, fitting = width + _GAP, {}
    for name, text in shown.items():
        if text and (needed := cell_len(text) + _GAP) <= free:
            free, fitting[name] = free - needed, text
    left = fitting.pop("name", "")
    right = (" " * _GAP).join(
        fitting[name] for name in ("epoch", "loss", "learning_rate", "rate", "remaining") if name in fitting
    )
    if free < _SHORTEST_BAR + _GAP:
        return Text((" " * _GAP).join(filter(None, (left, right))), no_wrap=True, overflow="ignore")
    row = Table.grid(padding=(0, _GAP, 0, 0), pad_edge=False)
    row.add_row(*([Text(left)] if left else []), ProgressBar(task.total, task.completed, free - _GAP), Text(right))
    return row
