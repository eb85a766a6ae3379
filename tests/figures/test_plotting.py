"""Figures do not depend on the backend and settings of the user, show names as they are, and fail softly."""

import errno
import io
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import matplotlib
import pytest
import torch
from PIL import Image

from oekd_fast.common.text import plain
from oekd_fast.figures import plotting
from oekd_fast.figures.plotting import new_figure, png, write_png
from oekd_fast.reporting.cam_figures import CamPanels, cam_figure
from oekd_fast.reporting.prediction_figures import class_figure

from ..support.hostile_names import HOSTILE_NAMES


def empty():
    return new_figure(1, 1)


def titled(title: str):
    return lambda: new_figure(2, 1, title)


@pytest.mark.parametrize(
    ("backend", "kept"),
    [("module://matplotlib_inline.backend_inline", False), ("no_such_backend", False), ("svg", True)],
)
def test_a_picture_is_drawn_whatever_backend_the_environment_names(backend, kept):
    code = """
    import os, sys
    from oekd_fast.figures.plotting import new_figure, png
    assert "matplotlib" not in sys.modules
    assert png(lambda: new_figure(1, 1, "title")).startswith(b"\\x89PNG")
    assert "matplotlib.pyplot" not in sys.modules
    import matplotlib
    print(os.environ["MPLBACKEND"], matplotlib.rcParams["backend"])
    """
    environment = {**os.environ, "MPLBACKEND": backend}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    variable, chosen = done.stdout.split()
    # A valid backend stays that of the other figures of the process.
    assert variable == backend and (chosen == backend or not kept)


def test_settings_of_the_user_have_no_effect_and_are_kept():
    expected = png(titled("a $b$ %"))
    with matplotlib.rc_context({"text.usetex": True, "figure.dpi": 20, "font.size": 3, "savefig.format": "pdf"}):
        assert png(titled("a $b$ %")) == expected
        assert matplotlib.rcParams["text.usetex"] and matplotlib.rcParams["font.size"] == 3


def test_dollar_signs_are_characters_and_do_not_start_formulas():
    assert png(titled("$x$")) != png(titled("x"))
    assert png(titled("$5 {a}$")).startswith(b"\x89PNG")  # not a valid formula


def panels_of(classes: list[str]):
    """Return the figure of Grad-CAM for one image of each class."""
    count = len(classes)
    maps = CamPanels("student 2", torch.rand(count, 4, 4), torch.arange(count), torch.full((count,), 0.5))
    return cam_figure(torch.zeros(count, 1, 4, 4, dtype=torch.uint8), torch.arange(count), classes, [maps])


@pytest.mark.slow
def test_names_are_titles_of_panels_and_labels_of_axes():
    titles = [axes.get_title() for axes in panels_of(list(HOSTILE_NAMES)).axes[: 2 * len(HOSTILE_NAMES) : 2]]
    for name, title in zip(HOSTILE_NAMES, titles, strict=True):
        assert title.startswith("true: ") and plain(name).startswith(title.removeprefix("true: ").rstrip("…"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for classes in (HOSTILE_NAMES, ["猫", "W" * 10_000]):
            content = png(lambda: class_figure(classes, torch.rand(2, len(classes)), torch.rand(len(classes))))  # noqa: B023
            with Image.open(io.BytesIO(content)) as picture:
                assert picture.format == "PNG" and picture.width < 2000


@pytest.mark.parametrize(
    "error", [ValueError("bad value"), OSError(errno.ENOSPC, "No space left on device"), MemoryError()]
)
def test_a_picture_that_cannot_be_drawn_is_one_line_with_its_path(error, tmp_path):
    def fail():
        raise error

    line = write_png(tmp_path / "report.png", fail)
    assert line.startswith(f"{tmp_path}/report.png: the picture could not be written (")
    assert (str(error) or "MemoryError") in line and "\n" not in line
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_cannot_be_written_is_one_line_with_its_path(tmp_path, monkeypatch):
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    assert write_png(tmp_path / "report.png", empty) is None
    monkeypatch.setattr(plotting, "write_atomically", full)
    assert "No space left on device" in write_png(tmp_path / "report.png", empty)


def test_a_missing_matplotlib_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    assert "report.png: the picture could not be written" in write_png(tmp_path / "report.png", empty)
