"""Progress of a phase: lines in a file, a bar on a terminal, both within 80 columns."""

import io

import pytest
from rich.console import Console

from oekd_fast.runs.progress import PhaseProgress

EPOCHS, STEPS = 350, 2
LINE = {
    "train": {"loss": 12.3456},
    "validation": {"accuracy": [98.123, 97.0, 96.04, 95.05, 94.0]},
    "images_per_second": 12345.6,
}


def shown(*, terminal: bool = False, enabled: bool = True, done: int = 0) -> str:
    text = io.StringIO()
    console = Console(file=text, width=80, force_terminal=terminal, color_system=None)
    with PhaseProgress(console, "ensemble", EPOCHS, STEPS, done, enabled) as progress:
        for epoch in range(done // STEPS + 1, EPOCHS + 1):
            for _ in range(STEPS):
                progress.step(128, 0.0123456)
            progress.epoch({**LINE, "epoch": epoch})
    return text.getvalue()


def test_lines_in_a_file_are_few_and_fit_80_columns():
    lines = shown().splitlines()
    assert len(lines) == 8 and max(map(len, lines)) <= 80
    assert lines[0] == "ensemble epoch 44/350  loss 12.35  val 98.1 97.0 96.0 95.0 94.0 %  12346 img/s"
    assert lines[-1].startswith("ensemble epoch 350/350  ")


def test_a_resumed_phase_continues_its_count():
    assert shown(done=300 * STEPS).splitlines()[0].startswith("ensemble epoch 308/350  ")


def test_the_bar_on_a_terminal_shows_epoch_loss_and_rate():
    last = shown(terminal=True).replace("\r", "\n").splitlines()
    bar = next(line for line in reversed(last) if "epoch 350/350" in line)
    for text in ("ensemble", "loss 12.35", "lr 0.0123", "img/s"):
        assert text in bar
    assert "…" not in bar


@pytest.mark.parametrize("terminal", [False, True])
def test_disabled_progress_shows_no_figures(terminal):
    assert "loss" not in shown(terminal=terminal, enabled=False)
