"""Bars that show an epoch while it trains: on a terminal, and in a notebook."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from oekd_fast.common.quantities import clock_text
from oekd_fast.common.text import encodable, html_text, plain
from oekd_fast.runs.console import in_notebook

_GAP, _SHORTEST_BAR = 2, 8  # in columns of the terminal
_WIDTH_WITH_BAR = 60  # columns from which on the bar is more important than further figures
# The first figures are the most important ones where there is little room, and the order in which they are shown.
_BY_IMPORTANCE = ("epoch", "phase", "loss", "left", "speed", "learning_rate")
_IN_ORDER = ("phase", "epoch", "loss", "learning_rate", "speed", "left")


@dataclass(frozen=True)
class Figures:
    """Figures of a step.

    Args:
        phase: name of the phase.
        epoch, epochs: number of the epoch that is trained, from 1, and of all epochs of the phase.
        done: share of the steps of the epoch that are done, from 0 to 1.
        loss: mean training loss; None if it is unknown.
        learning_rate: learning rate of the step; None before the first one.
        images_per_second: training images a second; None before they were measured.
        seconds_left: seconds that the run still needs; None if they are unknown.
    """

    phase: str
    epoch: int
    epochs: int
    done: float = 0.0
    loss: float | None = None
    learning_rate: float | None = None
    images_per_second: float | None = None
    seconds_left: float | None = None

    def texts(self) -> dict[str, str]:
        """Return the known figures as texts by name, in the order in which they are shown."""
        texts = {
            "phase": plain(self.phase),
            "epoch": f"{self.epoch}/{self.epochs}",
            "loss": loss_text(self.loss),
            "learning_rate": "" if self.learning_rate is None else f"lr {self.learning_rate:.3g}",
            "speed": speed_text(self.images_per_second),
            "left": left_text(self.seconds_left),
        }
        return {name: texts[name] for name in _IN_ORDER if texts[name]}


def loss_text(loss: float | None) -> str:
    """Return "loss 1.234", or nothing if it is unknown."""
    return "" if loss is None else f"loss {loss:#.4g}"


def speed_text(images_per_second: float | None) -> str:
    """Return "812 img/s", or nothing if it is unknown."""
    return "" if images_per_second is None else f"{images_per_second:.0f} img/s"


def left_text(seconds: float | None) -> str:
    """Return "0:04:32 left", or nothing if it is unknown."""
    return "" if seconds is None else f"{clock_text(seconds)} left"


class Bar(Protocol):
    """Something that shows the figures of the current step in place of those before."""

    def show(self, figures: Figures) -> None:
        """Show `figures`."""

    def end_phase(self) -> None:
        """End the bar of a phase."""

    def end_run(self, text: str) -> None:
        """End the bar of the run, whose outcome is `text`."""


def bar_for(console: Console) -> Bar | None:
    """Return the bar for `console`; None for a file, or a terminal that cannot move its cursor, such as TERM=dumb."""
    if console.quiet:
        return None
    if in_notebook(console):
        return NotebookBar()
    return TerminalBar(console) if console.is_interactive else None


class TerminalBar:
    """A line at the bottom of a terminal, which disappears at the end of a phase.

    It is drawn when figures are shown or a line is printed, in the thread that does so.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._figures: Figures | None = None
        self._live: Live | None = None

    def show(self, figures: Figures) -> None:
        self._figures = figures
        if self._live is None:
            self._live = Live(console=self._console, get_renderable=self._line, auto_refresh=False, transient=True)
            self._live.start()
        self._live.refresh()

    def end_phase(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def end_run(self, text: str) -> None:
        """Do nothing, since the end of the phase has removed the bar."""

    def _line(self) -> RenderableType:
        return bar_line(self._figures, self._console.width, self._console.encoding)


def bar_line(figures: Figures, width: int, encoding: str) -> RenderableType:
    """Return a line of at most `width` columns: the figures that fit, none of which is cut, and a bar between them."""
    texts = {name: encodable(text, encoding) for name, text in figures.texts().items()}
    if cell_len(texts["epoch"]) > width:
        texts["epoch"] = f"{figures.done:.0%}"
    room = width + _GAP - (_SHORTEST_BAR + _GAP if width >= _WIDTH_WITH_BAR else 0)
    fitting = set()
    for name in _BY_IMPORTANCE:
        if name in texts and (needed := cell_len(texts[name]) + _GAP) <= room:
            room -= needed
            fitting.add(name)
    left, right = (
        (" " * gap).join(texts[name] for name in names if name in fitting)
        for names, gap in ((_IN_ORDER[:2], 1), (_IN_ORDER[2:], _GAP))
    )
    free = width - sum(cell_len(text) + _GAP for text in (left, right) if text)
    if free < _SHORTEST_BAR:
        return Text((" " * _GAP).join(filter(None, (left, right))), no_wrap=True, overflow="ignore")
    row = Table.grid(padding=(0, _GAP, 0, 0), pad_edge=False)
    row.add_row(Text(left), ProgressBar(1.0, figures.done, free), *([Text(right)] if right else []))
    return row


class NotebookBar:
    """An output of a notebook's cell that is replaced when figures are shown.

    It needs IPython alone, which every notebook has, and a saved notebook holds the last state only.
    """

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, figures: Figures) -> None:
        text = "  ".join(figures.texts().values())
        bar = f'<progress value="{figures.done:.3f}" max="1" style="width: 16em; vertical-align: middle"></progress>'
        self._display(f"{figures.done:4.0%}  {text}", bar, text)

    def end_phase(self) -> None:
        """Do nothing: the bar is that of the whole run."""

    def end_run(self, text: str) -> None:
        self._display(text, "", text)

    def _display(self, text: str, bar: str, beside: str) -> None:
        from IPython.display import display

        style = "font-family: monospace; white-space: pre-wrap"
        content = {"text/plain": text, "text/html": f'<div style="{style}">{bar} {html_text(beside)}</div>'}
        if self._handle is None:
            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)
