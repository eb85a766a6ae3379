"""The benchmark of students in ONNX Runtime: files, order of the students, and its table."""

import json
import sys

import pytest
from torch import nn

from bench.readme import students as table
from bench.students import widths
from bench.students.order import order
from oekd_fast import FunctionalArchitecture, register_architecture
from oekd_fast.models import registry


def timing(median, spread=0.1):
    return {"median": median, "lower": median - spread, "upper": median + spread, "samples": 10}


@pytest.mark.parametrize(
    ("medians", "spread", "expected"),
    [
        ((3, 2, 1), 0.1, "yes"),
        ((3, 2, 1), 0.6, "close"),
        ((3, 3, 1), 0.1, "no"),
        ((2, 3, 1), 0.1, "no"),
        ((1,), 0, "yes"),
    ],
)
def test_order_of_students(medians, spread, expected):
    assert order([timing(median, spread) for median in medians]) == expected


@pytest.mark.slow
def test_the_command_measures_each_divisor(tmp_path, monkeypatch, capsys, one_thread):
    monkeypatch.setattr(registry, "_ARCHITECTURES", dict(registry._ARCHITECTURES))
    register_architecture(
        FunctionalArchitecture("small", lambda c: nn.Conv2d(c, 4, 1), lambda w: [nn.Conv2d(4, w(32), 3)], nn.Linear)
    )
    file = tmp_path / "widths_result_cpu.json"
    arguments = [
        "--model",
        "small",
        "--image-size",
        "8",
        "--divisors",
        "1",
        "8",
        "--batches",
        "1",
        "--widths",
        "1",
        ".7",
        "--seconds",
        "0",
    ]
    monkeypatch.setattr(sys, "argv", ["widths", *arguments, "--json", str(file)])
    widths.main()
    content = json.loads(file.read_text())
    (setting,) = content["results"]
    plain, rounded = (setting["milliseconds"][divisor] for divisor in ("1", "8"))
    assert plain[0] == rounded[0] and len(plain) == len(rounded) == 2
    assert plain[1]["median"] > 0
    channels = {divisor: family["channels"] for divisor, family in content["families"].items()}
    assert channels == {"1": [[32], [22]], "8": [[32], [24]]}
    assert "multiples of  8" in capsys.readouterr().out
    rows = [line.split("|") for line in table.latencies(tmp_path, "widths_*_cpu.json").splitlines()[2:4]]
    assert [row[4].strip() for row in rows] == ["int(c r)", "multiples of 8"]
    assert rows[0][1].strip() == "small, 8 px"


def test_without_results_the_table_is_empty(tmp_path):
    assert table.latencies(tmp_path, "widths_*_cpu.json") == ""
