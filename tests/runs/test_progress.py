"""Progress of a run: a bar an epoch on a terminal, a line an epoch, and lines without control characters in a file."""

import io
import re
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from oekd_fast.runs.console import RunConsole
from oekd_fast.runs.progress import RunProgress, epoch_line
from oekd_fast.runs.run import train
from oekd_fast.runs.time_left import PhaseWork, TimeLeft

from ..support.clock import Clock

EPOCHS, STEPS = 350, 2
NEARLY = (EPOCHS - 1) * STEPS  # all but the last epoch
ACCURACIES = [98.123, 97.0, 96.04, 95.05, 94.0]


def line(epoch: int, phase: str = "ensemble", accuracies: list[float] = ACCURACIES) -> dict:
    return {
        "phase": phase,
        "epoch": epoch,
        "train": {"loss": 12.3456},
        "validation": {"accuracy": accuracies},
        "images_per_second": 12345.6,
    }


def trained(
    console: Console, *, epochs: int = EPOCHS, done: int = 0, phases=("ensemble",), known: bool = True, every: int = 1
) -> None:
    """Show phases whose steps and evaluations take a second each."""
    clock = Clock()
    left = TimeLeft([PhaseWork(name, epochs, 1, 1.0, evaluation=0.5) for name in phases], clock=clock)
    with RunProgress(console, left if known else None, clock) as run:
        for name in phases:
            with run.phase(name, epochs, STEPS, done, every) as progress:
                for epoch in range(done // STEPS + 1, epochs + 1):
                    for _ in range(STEPS):
                        clock.wait(1.0)
                        progress.step(128, 0.0123456, lambda: 2.5)
                    clock.wait(1.0)
                    shown = line(epoch, name)
                    if epoch % every and epoch != epochs:
                        del shown["validation"]
                    progress.epoch(shown)


def shown(*, terminal: bool = False, width: int = 80, encoding: str = "utf-8", environ: dict | None = None, **options):
    raw = io.BytesIO()
    console = Console(
        file=io.TextIOWrapper(raw, encoding, newline="\n"), width=width, force_terminal=terminal or None,
        color_system=None, _environ={} if environ is None else environ,
    )  # fmt: skip
    trained(console, **options)
    console.file.flush()
    return raw.getvalue().decode(encoding)


def drawn(text: str) -> list[str]:
    """Return everything that was drawn as lines, without control sequences."""
    parts = re.sub(r"\x1b\[[?\d]*[A-Za-z]", "", text).replace("\r", "\n").splitlines()
    return [part.rstrip() for part in parts if part.strip()]


def last_bar(**options) -> str:
    """Return the bar after the last step of the last epoch."""
    return [part for part in drawn(shown(terminal=True, done=NEARLY, **options)) if "val" not in part][-1]


def test_a_file_gets_plain_lines_within_80_columns():
    text = shown()
    lines = text.splitlines()
    assert all(character.isprintable() or character == "\n" for character in text)
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "ensemble 350/350  loss 12.35  val 98.1 97.0 96.0 95.0 94.0 %  0:00:00 left"


@pytest.mark.parametrize(
    ("epochs", "printed"), [(3, [1, 2, 3]), (100, [*range(1, 101)]), (101, [1, *range(2, 101, 2), 101])]
)
def test_a_file_gets_a_line_an_epoch_or_about_a_hundred_a_phase(epochs, printed):
    found = [int(re.match(r"ensemble +(\d+)/", text)[1]) for text in shown(epochs=epochs).splitlines()]
    assert found == printed


@pytest.mark.parametrize(
    ("epochs", "every", "stride"),
    [(100, 5, 1), (101, 5, 5), (350, 5, 5), (350, 50, 5), (350, 7, 7), (350, 2, 4), (350, 400, 4), (1000, 16, 16)],
)
def test_the_lines_of_a_file_are_those_of_evaluated_epochs_or_more(epochs, every, stride):
    """The accuracies of an epoch are in its own line alone."""
    lines = shown(epochs=epochs, every=every).splitlines()
    found = [int(re.match(r"ensemble +(\d+)/", text)[1]) for text in lines]
    assert found == [epoch for epoch in range(1, epochs + 1) if epoch % stride == 0 or epoch in (1, epochs)]
    with_accuracies = [epoch for epoch, text in zip(found, lines, strict=True) if " val " in text]
    assert with_accuracies == [epoch for epoch in found if epoch % every == 0 or epoch == epochs]


def test_a_terminal_gets_a_line_for_each_epoch_and_a_bar_that_disappears():
    text = shown(terminal=True, epochs=120)
    lines = [part for part in drawn(text) if "val" in part]
    assert len(lines) == 120
    assert lines[0] == "ensemble   1/120  loss 12.35  val 98.1 97.0 96.0 95.0 94.0 %  0:05:57 left"
    assert text.endswith("\x1b[2K")  # erases the line


def test_the_bar_is_that_of_an_epoch_and_shows_the_time_of_the_run():
    drawings = drawn(shown(terminal=True, epochs=2, phases=("ensemble", "baseline_1")))
    bars = [part for part in drawings if "val" not in part]
    assert max(map(len, bars)) == 80
    # Steps and evaluations take a second each; bars that are drawn again around a line are left out.
    expected = [
        ("ensemble 1/2",),
        ("ensemble 1/2", "loss 2.500", "lr 0.0123", "128 img/s"),
        ("ensemble 1/2", "loss 2.500", "lr 0.0123", "128 img/s", "0:00:10 left"),
        ("ensemble 2/2", "loss 12.35", "lr 0.0123", "128 img/s", "0:00:09 left"),
        ("ensemble 2/2", "loss 2.500", "lr 0.0123", "128 img/s", "0:00:08 left"),
        ("ensemble 2/2", "loss 2.500", "lr 0.0123", "128 img/s", "0:00:07 left"),
        ("baseline_1 1/2", "0:00:06 left"),
        ("baseline_1 1/2", "loss 2.500", "lr 0.0123", "128 img/s", "0:00:04 left"),
        ("baseline_1 2/2", "loss 12.35", "lr 0.0123", "128 img/s", "0:00:03 left"),
        ("baseline_1 2/2", "loss 2.500", "lr 0.0123", "128 img/s", "0:00:02 left"),
        ("baseline_1 2/2", "loss 2.500", "lr 0.0123", "128 img/s", "0:00:01 left"),
    ]
    found = [tuple(filter(None, re.split(" *[━╸╺]+ *|  +", part))) for part in bars]
    assert [one for one, before in zip(found, [None, *found], strict=False) if one != before] == expected


def test_the_bar_has_the_length_of_the_steps_that_are_done():
    bars = drawn(shown(terminal=True, epochs=1))
    assert [part.count("━") for part in bars if "val" not in part][:3] == [0, 16, 18]
    assert bars[1] == f"ensemble 1/1  {'━' * 16}{' ' * 18}loss 2.500  lr 0.0123  128 img/s"


def test_a_resumed_phase_continues_its_count():
    assert shown(done=300 * STEPS).splitlines()[0].startswith("ensemble 304/350  ")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
@pytest.mark.parametrize(
    ("width", "figures"),
    [
        (40, ["ensemble 350/350", "loss 2.500", "128 img/s"]),
        (30, ["ensemble 350/350", "loss 2.500"]),
        (20, ["ensemble 350/350"]),
        (10, ["350/350"]),
        (5, ["100%"]),
    ],
)
def test_a_narrow_terminal_shows_fewer_figures_and_cuts_none(width, figures, encoding):
    assert last_bar(width=width, encoding=encoding).split("  ") == figures


def test_the_bar_has_a_place_among_long_figures_at_80_columns():
    bar = last_bar(phases=["baseline_10"])
    assert bar.count("━") >= 8 and len(bar) == 80 and "lr" in bar


def test_the_bar_has_characters_of_the_encoding():
    bar = last_bar(encoding="cp1252")
    assert "----" in bar and "━" not in bar


def test_a_terminal_without_cursor_movement_gets_lines():
    text = shown(terminal=True, environ={"TERM": "dumb"}, epochs=4)
    assert "\x1b" not in text and len(text.splitlines()) == 4


def test_no_color_leaves_the_bar():
    text = shown(terminal=True, environ={"NO_COLOR": "1"}, epochs=2)
    assert "━" in text and not re.search(r"\x1b\[[\d;]*m", text)


def test_colours_that_are_forced_into_a_file_bring_no_bar(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("COLUMNS", raising=False)
    console = RunConsole()
    assert console.is_terminal and console.width == 80
    trained(console, epochs=2)
    text = capsys.readouterr().out
    assert "\x1b" not in text and len(text.splitlines()) == 2


@pytest.mark.parametrize("terminal", [False, True])
def test_disabled_progress_shows_nothing(terminal):
    assert shown(terminal=terminal, known=False) == ""


def test_a_quiet_console_shows_no_bar():
    trained(Console(quiet=True, force_terminal=True), epochs=2)


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (80, "baseline_12   7/350  loss 12.35  val 98.1 100.0 7.0 %  12346 img/s  1:01:01 left"),
        (79, "baseline_12   7/350  loss 12.35  val 98.1 100.0 7.0 %  1:01:01 left"),
        (60, "baseline_12   7/350  loss 12.35  val 98.1 100.0 7.0 %"),
        (45, "baseline_12   7/350  val 98.1 100.0 7.0 %"),
        (35, "baseline_12   7/350  val 98 100 7 %"),
        (28, "bas…   7/350  val 98 100 7 %"),
        (24, "  7/350  val 98 100 7 %"),
        (5, "  7/350  val 98 100 7 %"),
    ],
)
def test_a_line_is_shortened_to_the_width(width, expected):
    text = epoch_line(line(7, "baseline_12", [98.12, 100.0, 7.0]), 350, 3661.0, width)
    assert text == expected


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (58, "baseline_12   7/350  loss 12.35  12346 img/s  1:01:01 left"),
        (50, "baseline_12   7/350  loss 12.35  1:01:01 left"),
        (33, "baseline_12   7/350  loss 12.35"),
        (20, "baseline_12   7/350"),
        (12, "bas…   7/350"),
        (5, "  7/350"),
    ],
)
def test_a_line_without_an_evaluation_has_no_accuracies(width, expected):
    of_epoch = line(7, "baseline_12")
    del of_epoch["validation"]
    assert epoch_line(of_epoch, 350, 3661.0, width) == expected


def test_eight_students_fit_80_columns():
    text = epoch_line(line(7, accuracies=[98.123] * 8), 350, 3661.0, 80)
    assert text == f"ensemble   7/350  loss 12.35  val {' '.join(['98.1'] * 8)} %"
    assert epoch_line(line(7, accuracies=[98.123] * 8), 350, 3661.0, 40) == f"  7/350  val {' '.join(['98'] * 8)} %"


def test_a_name_from_elsewhere_has_no_control_characters():
    assert epoch_line(line(7, "a\x1b[31m\n"), 9, None, 80).startswith("a\\x1b[31m\\n 7/9  loss")


def test_standard_output_that_is_closed_is_not_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    sys.stdout.close()
    assert not RunConsole().is_interactive


def test_a_run_shows_the_epochs_of_all_its_phases(smallest):
    printed = io.StringIO()
    train(replace(smallest, epochs=2, baseline=True, progress=True), Console(file=printed, width=80))
    lines = [text for text in printed.getvalue().splitlines() if " val " in text]
    assert [text.split("  ")[0] for text in lines] == [
        f"{name} {epoch}/2" for name in ("ensemble", "baseline_1", "baseline_2") for epoch in (1, 2)
    ]
    assert all("left" in text and len(text) <= 80 for text in lines)
