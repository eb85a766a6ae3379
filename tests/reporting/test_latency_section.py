"""Latency in the report: the table, the marks, the picture, and fields with values that no run writes."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from oekd_fast.reporting.finished_runs import read_run
from oekd_fast.reporting.latency_section import latency_parts
from oekd_fast.reporting.run_files import ReportError

from ..support.latencies import EAGER_1, EAGER_64, ONNX_1, entry, with_latencies
from ..support.reports import Checker, change, page_of

STORED = Path(__file__).parents[1] / "fixtures" / "runs_of_0_1_0" / "finished"
SUMMARY = json.loads((STORED / "summary.json").read_text())
FIRST = [entry(EAGER_1, 1.5), entry(ONNX_1, 0.75), entry(EAGER_64, 123.4)]
SECOND = [entry(EAGER_1, 1.625, 1), entry(ONNX_1, 0.25), entry(EAGER_64, 99.0, 1)]
MEASURED = with_latencies(SUMMARY, [FIRST, SECOND], [entry(EAGER_1, 3.25)])


@pytest.fixture
def folder(tmp_path) -> Path:
    run = shutil.copytree(STORED, tmp_path / "run")
    change(run / "summary.json", **MEASURED)
    return run


def parts(*folders: Path) -> str:
    return "\n".join(latency_parts([read_run(folder) for folder in folders], lambda name, draw, description: name))


def test_the_table_has_a_column_for_each_setting(folder):
    text = parts(folder)
    for heading in ("eager, 2 threads, batch 1", "onnx, 2 threads, batch 1", "eager, 2 threads, batch 64"):
        assert f"<th>{heading}</th>" in text
    first, second, ensemble = (row for row in text.splitlines() if row.startswith("<tr><td>"))
    assert "<td>1.10 MB</td><td>1.50 (3.00)</td><td>0.750 (1.50)</td><td>123 (247)</td>" in first
    assert "<td>490 kB</td><td>*1.62 (3.25)</td><td>0.250 (0.500)</td><td>*99.0 (198)</td>" in second
    assert "<td>1.60 MB</td><td>3.25 (6.50)</td><td>-</td><td>-</td>" in ensemble
    assert "a &lt;processor&gt;" in text and "torch 2.13" in text and "of shape 1 x 8 x 8" in text
    assert "eager, 1 thread, batch 64: not measured, since it takes more than 20 s." in text


def test_a_student_that_is_not_faster_is_named_in_one_sentence(folder):
    (note,) = (line for line in parts(folder).splitlines() if 'class="note"' in line)
    sentence = (
        "Student 2 is not measurably faster than student 1 (eager, 2 threads, batch 1; eager, 2 threads, batch 64)."
    )
    assert f"<li>{sentence}</li>" in note
    change(folder / "summary.json", **with_latencies(SUMMARY, [FIRST, FIRST]))
    assert 'class="note"' not in parts(folder)


@pytest.mark.slow
def test_the_page_has_the_picture(folder, tmp_path):
    text = page_of(folder, with_data=False, output=tmp_path / "page")
    assert Checker(text).open == [] and "Size on disk and latency" in text
    with Image.open(tmp_path / "page" / "latency.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 200


@pytest.mark.parametrize("latency", [None, []])
def test_a_run_without_latency_has_no_such_section(folder, latency):
    students = [student | {"latency": latency} for student in MEASURED["students"]]
    change(folder / "summary.json", students=students)
    assert parts(folder) == ""
    assert parts(STORED) == ""


def test_runs_that_differ_in_the_seed_show_the_first_latency(folder, tmp_path):
    other = shutil.copytree(STORED, tmp_path / "other")
    change(other / "config.json", seed=7)
    assert "Measured in the run of seed 0." in parts(other, folder)
    assert "Measured in the run" not in parts(folder)


def test_settings_that_a_student_lacks_are_left_out(folder):
    change(folder / "summary.json", **with_latencies(SUMMARY, [FIRST, SECOND[:1]]))
    text = parts(folder)
    assert "eager, 2 threads, batch 1" in text and "onnx, 2" not in text


def row(**changes) -> dict:
    return {"students": [MEASURED["students"][0], MEASURED["students"][1] | {"latency": [SECOND[0] | changes]}]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (row(runtime="tpu"), 'students[1]: latency[0]: runtime: expected one of eager, onnx, got "tpu"'),
        (row(runtime=["eager"]), "runtime: expected one of eager, onnx, got a list of 1 entries"),
        (row(device="x" * 30), "device: expected the type of a device"),
        (row(threads=0), "threads: expected an integer >= 1 or null, got 0"),
        (row(batch=True), "batch: expected an integer >= 1, got true"),
        (row(median_ms=0), "median_ms: expected a number > 0, got 0"),
        (row(median_ms=float("nan")), "median_ms: expected a number > 0, got NaN"),
        (row(p95_ms=10**400), "p95_ms: expected a number > 0, got 10"),
        (row(not_faster_than=[2]), "not_faster_than: expected a list of larger students, got a list of 1 entries"),
        (row(not_faster_than=[1, 1]), "not_faster_than: expected a list of larger students"),
        ({"students": [s | {"latency": [3]} for s in MEASURED["students"]]}, "latency: expected a list of objects"),
        ({"students": [s | {"latency": [{}]} for s in MEASURED["students"]]}, "runtime: expected one of eager, onnx, "),
        ({"students": [s | {"latency": FIRST * 50} for s in MEASURED["students"]]}, "at most 100 objects, got a list"),
        ({"students": [s | {"file_bytes": 1.5} for s in MEASURED["students"]]}, "file_bytes: expected an integer >= 1"),
        ({"ensemble": 3}, "summary.json: ensemble: expected an object, got 3"),
        ({"ensemble": {"parameters": 1}}, "ensemble: flops: expected a number > 0, got nothing"),
        ({"ensemble": MEASURED["ensemble"] | {"latency": SECOND}}, "ensemble: latency[0]: not_faster_than: expected"),
        ({"latency": []}, "latency: expected an object, got a list of 0 entries"),
        ({"latency": MEASURED["latency"] | {"machine": {"a": [1]}}}, "machine: expected an object of strings and num"),
        ({"latency": MEASURED["latency"] | {"image_shape": [1, 8]}}, "image_shape: expected a list of 3 integers >= 1"),
        ({"latency": MEASURED["latency"] | {"notes": ["a"] * 101}}, "notes: expected a list of at most 100 strings"),
        ({"latency": MEASURED["latency"] | {"seconds": "1"}}, 'seconds: expected a number >= 0, got "1"'),
    ],
    ids=lambda value: str(value)[-40:],
)
def test_fields_with_wrong_values_are_one_line_that_names_the_field(fields, message, folder):
    change(folder / "summary.json", **fields)
    with pytest.raises(ReportError) as raised:
        read_run(folder)
    text = str(raised.value)
    assert message in text and text.startswith(f"runs: {folder}/summary.json: ") and "\n" not in text
