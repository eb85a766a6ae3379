"""Progress of a phase: lines in a file, a bar on a terminal, both within 80 columns."""

import io
import re

import pytest
from rich.console import Console

from oekd_fast.runs.progress import PhaseProgress

EPOCHS, STEPS = 350, 2
LINE = {
    "learning_rate": 0.0123456,
    "train": {"loss": 12.3456},
    "validation": {"accuracy": [98.123, 97.0, 96.04, 95.05, 94.0]},
    "images_per_second": 12345.6,
}


def shown(
    *, terminal: bool = False, enabled: bool = True, done: int = 0, width: int = 80, encoding: str = "utf-8", **options
) -> str:
    raw = io.BytesIO()
    console = Console(
        file=io.TextIOWrapper(raw, encoding), width=width, force_terminal=terminal, color_system=None, **options
    )
    with PhaseProgress(console, "ensemble", EPOCHS, STEPS, done, enabled) as progress:
        for epoch in range(done // STEPS + 1, EPOCHS + 1):
            for _ in range(STEPS):
                progress.step(128, 0.0123456)
            progress.epoch({**LINE, "epoch": epoch})
    console.file.flush()
    return raw.getvalue().decode(encoding)


def last_bar(**options) -> str:
    """Return the line of the bar when the phase ends, without control sequences."""
    lines = re.sub(r"\x1b\[[?\d]*[A-Za-z]", "", shown(terminal=True, **options)).replace("\r", "\n").splitlines()
    return [line for line in lines if line.strip()][-1]


def test_lines_in_a_file_are_few_and_fit_80_columns():
    lines = shown().splitlines()
    assert len(lines) == 8 and max(map(len, lines)) <= 80
    assert lines[0] == "ensemble epoch 44/350  loss 12.35  val 98.1 97.0 96.0 95.0 94.0 %  12346 img/s"
    assert lines[-1].startswith("ensemble epoch 350/350  ")


def test_a_resumed_phase_continues_its_count():
    assert shown(done=300 * STEPS).splitlines()[0].startswith("ensemble epoch 308/350  ")


def test_the_bar_on_a_terminal_shows_epoch_loss_and_rate():
    bar = last_bar()
    for text in ("ensemble", "━━━", "epoch 350/350", "loss 12.35", "lr 0.0123", "img/s", "0:00:00"):
        assert text in bar
    assert len(bar) <= 80


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(
    ("width", "figures"),
    [
        (40, ["ensemble", "epoch 350/350", "loss 12.35"]),
        (30, ["ensemble", "epoch 350/350"]),
        (20, ["epoch 350/350"]),
        (10, ["350/350"]),
        (5, ["100%"]),
    ],
)
def test_a_narrow_terminal_shows_fewer_figures_and_cuts_none(width, figures, encoding):
    assert last_bar(width=width, encoding=encoding).split("  ") == figures


def test_a_terminal_without_cursor_movement_gets_lines(monkeypatch):
    lines = shown(terminal=True, _environ={"TERM": "dumb"}).splitlines()
    assert len(lines) == 8 and lines[-1].startswith("ensemble epoch 350/350  ")


@pytest.mark.parametrize("terminal", [False, True])
def test_disabled_progress_shows_no_figures(terminal):
    assert "loss" not in shown(terminal=terminal, enabled=False)
