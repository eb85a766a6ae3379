"""A run and its report on a folder with hostile names of classes, in a folder with brackets, on an output in ASCII."""

import io
import json
import os
import sys

import numpy as np
import pytest
from PIL import Image

import oekd_fast.report
import oekd_fast.train

from ..support.reports import Checker, draw_nothing

CLASSES = ("$5 {a}$", "<img src=x>", "[red]x[", "caf\udce9")


@pytest.fixture
def images(tmp_path):
    """A folder of the classes, each with six images of its own shade."""
    generator = np.random.default_rng(0)
    for k, name in enumerate(CLASSES):
        folder = os.fsencode(tmp_path / "data[1]") + b"/" + os.fsencode(name)
        try:
            os.makedirs(folder)
        except OSError:
            pytest.skip("the file system takes names in UTF-8 only")
        for i in range(6):
            pixels = (generator.integers(0, 60, (8, 8, 3)) + 60 * k).astype(np.uint8)
            content = io.BytesIO()
            Image.fromarray(pixels).save(content, "png")
            with open(folder + b"/%d.png" % i, "wb") as file:
                file.write(content.getvalue())
    return tmp_path / "data[1]"


@pytest.mark.slow
def test_names_are_accepted_and_shown(images, tmp_path, monkeypatch, one_thread):
    # Pictures of names are drawn in tests/figures.
    draw_nothing(monkeypatch)
    run = tmp_path / "run[lr=0.1]"
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    monkeypatch.setenv("COLUMNS", "10")
    arguments = ["--dataset", images, "--epochs", 1, "--num-students", 2, "--batch-size", 8, "--output-dir", run]
    arguments += ["--latency", "off"]
    monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments), "--device", "cpu"])
    assert oekd_fast.train.main() == 0
    monkeypatch.setattr(sys, "argv", ["report", str(run), "--with-data", "--images", "4", "--device", "cpu"])
    assert oekd_fast.report.main() == 0
    sys.stdout.flush()

    lines = raw.getvalue().decode("ascii").splitlines()
    assert f"Run folder: {run}" in lines and lines[-1] == f"Report: {run}/report/index.html"
    summary = json.loads((run / "summary.json").read_text())
    for student in summary["students"]:
        assert f"student {student['index']}: {student['accuracy']:.2f} %" in lines
    assert {path.name for path in run.iterdir()} >= {"report.png", "students", "metrics.jsonl"}

    page = (run / "report" / "index.html").read_text(encoding="utf-8")
    assert "are missing" not in page and "could not be drawn" not in page
    assert Checker(page).tags == Checker(page.replace("&lt;img", "")).tags and page.count('role="img"') == 9
    for cell in ("$5 {a}$", "&lt;img src=x&gt;", "[red]x[", r"caf\xe9"):
        assert f"<td>{cell}</td>" in page
