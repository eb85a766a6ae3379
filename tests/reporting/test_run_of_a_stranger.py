"""The report of a run folder that comes from a stranger: what it opens and writes, and what its files may hold."""

import io
import json
import os
import shutil
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from oekd_fast.common.text import plain
from oekd_fast.data import DataError
from oekd_fast.report import ReportConfig, main, report
from oekd_fast.reporting import evaluation
from oekd_fast.reporting.finished_runs import read_run
from oekd_fast.reporting.run_files import ReportError
from oekd_fast.runs import device_data

from ..support.hostile_names import HOSTILE_NAMES
from ..support.reports import Checker, change, change_lines, draw_nothing, page_of

STORED = Path(__file__).parents[1] / "fixtures" / "runs_of_0_1_0" / "finished"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A finished run of two students, whose report draws no pictures."""
    draw_nothing(monkeypatch)
    return shutil.copytree(STORED, tmp_path / "run")


@pytest.fixture
def loads(monkeypatch) -> list[str]:
    """The names of the data sets that are loaded; loading them fails."""
    names = []

    def load(name, **options):
        names.append(name if options["data_dir"] is None else str(options["data_dir"]))
        raise DataError("not loaded in this test")

    monkeypatch.setattr(device_data, "load_dataset", load)
    monkeypatch.setattr(evaluation, "load_networks", lambda run, device, model: None)
    return names


def reported(*runs: Path, **options) -> str:
    """Write a report and return what is printed."""
    printed = io.StringIO()
    report(ReportConfig(runs=runs, device="cpu", **options), Console(file=printed))
    return printed.getvalue()


@pytest.mark.parametrize(
    ("dataset", "data_dir"),
    [("owner/name", None), ("/etc", None), ("cifar10", None), ("mnist", "/var/data"), ("~", None)],
)
def test_data_that_the_config_names_is_loaded_only_if_the_user_says_so(dataset, data_dir, folder, loads):
    change(folder / "config.json", dataset=dataset, data_dir=data_dir)
    line = reported(folder)
    assert loads == [] and line.count("\n") == 1
    assert f"missing: config.json names the data set '{dataset}'" in line and "--with-data loads it" in line
    assert "which is not loaded unasked" in (folder / "report" / "index.html").read_text()
    reported(folder, with_data=True)
    assert loads == [data_dir or dataset]


def test_the_digits_are_loaded_unasked(folder, loads):
    reported(folder)
    assert loads == ["digits"]


def test_a_folder_given_by_the_user_replaces_the_one_of_the_config(folder, loads, tmp_path):
    change(folder / "config.json", dataset="owner/name")
    reported(folder, data_dir=tmp_path)
    assert loads == [str(tmp_path)]
    assert "expected the folder of the data set, got owner/name" in reported(folder, data_dir=Path("owner/name"))
    assert loads == [str(tmp_path)]


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_students": 10**9}, "num_students: expected an integer >= 1 and <= 1000, got 1000000000"),
        ({"image_size": 10**9}, "image_size: expected pixels >= 1 and <= 16384, got 1000000000"),
        ({"pad": 10**9}, "pad: expected pixels >= 0 and <= 16384, got 1000000000"),
        ({"epochs": 10**9}, "metrics.jsonl: expected 1000000000 lines of the phase 'ensemble', got 3"),
        ({"temperature": 10**400}, "temperature: expected a finite number > 0, got 10000"),
        ({"dataset": ["digits"]}, "dataset: expected a string, got ['digits']"),
        ({"model": None}, "model: expected a string, got None"),
        ({"seed": "0"}, "seed: expected an integer >= 0, got '0'"),
        ({"progress": {}}, "progress: expected True or False, got {}"),
        ({"milestones": [[0.5]]}, "milestones: expected shares of the training in (0, 1), got ([0.5],)"),
        ({"output_dir": 3, "objective": {"a": 1}}, "objective: expected one of oekd, "),
        (DEEP, "config.json is damaged ("),
        ("[]", "config.json is damaged (expected a JSON object, got list)"),
        ('{"seed": 1' + "0" * 5000 + "}", "config.json is damaged ("),
        ('{"dataset": "' + "x" * 2**20 + '"}', "expected at most 1,048,576 bytes"),
        ("", "config.json is damaged ("),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_config_with_absurd_values_is_one_line_and_takes_no_memory(fields, message, folder, monkeypatch, capsys):
    if isinstance(fields, dict):
        change(folder / "config.json", **fields)
    else:
        (folder / "config.json").write_text(fields)
    monkeypatch.setattr(sys, "argv", ["report", str(folder)])
    tracemalloc.start()
    status = main()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    errors = capsys.readouterr().err
    assert status == 1 and errors.startswith("error: ") and errors.count("\n") == 1 and message in errors
    assert len(errors) < 1000 and peak < 64e6
    assert not (folder / "report").exists()


STUDENT = json.loads((STORED / "summary.json").read_text())["students"][0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset": 3}, "summary.json: dataset: expected a string, got 3"),
        ({"ensemble_accuracy": "90"}, 'summary.json: ensemble_accuracy: expected a percentage, got "90"'),
        ({"ensemble_accuracy": float("nan")}, "summary.json: ensemble_accuracy: expected a percentage, got NaN"),
        ({"selected_epoch": 4}, "summary.json: selected_epoch: expected an epoch of 1 to 3, got 4"),
        ({"test_images": 1.5}, "summary.json: test_images: expected an integer >= 1, got 1.5"),
        ({"seconds": -1}, "summary.json: seconds: expected a number >= 0, got -1"),
        ({"versions": ["torch"]}, "summary.json: versions: expected an object of strings, got a list of 1 entries"),
        ({"device": {}}, "summary.json: device: expected a string, got an object of 0 entries"),
        ({"students": {}}, "summary.json: students: expected a list of objects, got an object of 0 entries"),
        ({"students": [3, 4]}, "summary.json: students: expected a list of objects, got a list of 2 entries"),
        ({"students": [STUDENT] * 3}, "summary.json: expected 2 students, got 3"),
        ({"students": [STUDENT | {"index": "../../x"}] * 2}, 'students[0]: index: expected 1, got "../../x"'),
        ({"students": [STUDENT | {"index": 1}] * 2}, "students[1]: index: expected 2, got 1"),
        ({"students": [STUDENT | {"index": True}] * 2}, "students[0]: index: expected 1, got true"),
        ({"students": [STUDENT | {"flops": 0}] * 2}, "students[0]: flops: expected a number > 0, got 0"),
        ({"students": [STUDENT | {"parameters": 10**300}] * 2}, "students[0]: parameters: expected an integer >= 1"),
        ({"students": [STUDENT | {"accuracy": 101}] * 2}, "students[0]: accuracy: expected a percentage, got 101"),
        ({"students": [STUDENT | {"accuracy": True}] * 2}, "students[0]: accuracy: expected a percentage, got true"),
        (
            {"students": [STUDENT | {"accuracy_with_flips": "99"}] * 2},
            'accuracy_with_flips: expected a percentage or null, got "99"',
        ),
        (
            {"students": [STUDENT | {"relative_gain": 10**400}] * 2},
            "relative_gain: expected a number or null, got 10",
        ),
    ],
    ids=lambda value: str(value)[-40:],
)
def test_a_summary_with_wrong_types_is_one_line_that_names_the_field(fields, message, folder):
    change(folder / "summary.json", **fields)
    with pytest.raises(ReportError) as raised:
        read_run(folder)
    text = str(raised.value)
    assert message in text and text.startswith(f"runs: {folder}/summary.json: ") and "\n" not in text


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda line: line.update(phase=3), "line 1: phase: expected a string, got 3"),
        (lambda line: line.update(epoch=7), "line 1: epoch: expected 1, got 7"),
        (lambda line: line.update(train=3), "line 1: train: expected an object, got 3"),
        (
            lambda line: line["train"].update(ce=[1.0]),
            "line 1: train: ce: expected a list of 2 numbers, got a list of 1",
        ),
        (lambda line: line["train"].update(ce="ab"), 'line 1: train: ce: expected a list of 2 numbers, got "ab"'),
        (lambda line: line["train"].pop("kd"), "line 1: train: kd: expected a list of 2 numbers, got nothing"),
        (lambda line: line["validation"].update(accuracy=[1, None]), "accuracy: expected a list of 2 percentages"),
        (lambda line: line["validation"].pop("ensemble_accuracy"), "ensemble_accuracy: expected a percentage"),
    ],
    ids=range(8),
)
def test_metrics_with_wrong_types_are_one_line_that_names_the_field(edit, message, folder):
    change_lines(folder / "metrics.jsonl", edit)
    with pytest.raises(ReportError) as raised:
        read_run(folder)
    assert message in str(raised.value) and str(raised.value).startswith(f"runs: {folder}/metrics.jsonl, line 1: ")


def test_the_lines_of_evaluated_epochs_alone_have_accuracies(folder):
    change(folder / "config.json", evaluate_every=2)
    with pytest.raises(ReportError, match="line 1: validation: expected nothing with evaluate_every 2, got an object"):
        read_run(folder)
    change_lines(folder / "metrics.jsonl", lambda line: line.pop("validation") if line["epoch"] == 1 else None)
    change(folder / "summary.json", selected_epoch=1)
    with pytest.raises(ReportError, match="selected_epoch: expected an epoch that was evaluated, got 1"):
        read_run(folder)
    change(folder / "summary.json", selected_epoch=3)
    assert ["validation" in line for line in read_run(folder).histories["ensemble"]] == [False, True, True]
    change_lines(folder / "metrics.jsonl", lambda line: line.pop("validation") if line["epoch"] == 3 else None)
    with pytest.raises(ReportError, match="line 3: validation: expected an object, got nothing"):
        read_run(folder)


@pytest.mark.parametrize("name", ["config.json", "summary.json", "metrics.jsonl"])
def test_a_file_that_is_a_link_to_another_folder_is_not_read(name, folder, tmp_path):
    shutil.move(folder / name, tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(ReportError, match=f"{name}: expected a file in the run folder, got a link to another folder"):
        read_run(folder)


def test_weights_that_are_links_to_another_folder_are_not_read(folder, tmp_path):
    shutil.move(folder / "students", tmp_path / "elsewhere")
    (folder / "students").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ReportError, match="student_1.safetensors: expected a file in the run folder"):
        read_run(folder).saved("students")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no FIFOs")
def test_a_fifo_is_not_waited_for(folder):
    (folder / "metrics.jsonl").unlink()
    os.mkfifo(folder / "metrics.jsonl")
    with pytest.raises(ReportError, match="metrics.jsonl is missing"):
        read_run(folder)


def test_nothing_is_written_outside_the_folder_of_the_page(folder, tmp_path, loads):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "index.html").write_text("precious")
    (folder / "report").symlink_to(outside)
    for options in ({}, {"output": folder / "report"}):
        with pytest.raises(OSError, match="expected a folder, got a symbolic link"):
            reported(folder, **options)
    (folder / "report").unlink()
    (folder / "report").mkdir()
    for name in ("index.html", "sizes.png", "curves.png"):
        (folder / "report" / name).symlink_to(outside / "index.html")
    reported(folder)
    assert (outside / "index.html").read_text() == "precious" and len(list(outside.iterdir())) == 1
    assert not any(path.is_symlink() for path in (folder / "report").iterdir())


def test_a_page_in_the_current_folder(folder, monkeypatch, loads):
    monkeypatch.chdir(folder)
    reported(Path("."), output=Path("."))
    assert (folder / "index.html").exists()


class Attributes(Checker):
    """Parser that also collects the names of all attributes and the texts of a page."""

    def __init__(self, text: str) -> None:
        self.names, self.text = set(), ""
        super().__init__(text)

    def handle_starttag(self, tag, attributes):
        super().handle_starttag(tag, attributes)
        self.names |= {name for name, _ in attributes}

    def handle_data(self, data):
        self.text += data


def test_names_are_text_of_the_page(run, monkeypatch, capsys):
    names = list(HOSTILE_NAMES)
    classes = ("".join(names), *names[:2])
    expected = Attributes(page_of(run))

    dataset_of = device_data.dataset_of
    monkeypatch.setattr(device_data, "dataset_of", lambda config: replace(dataset_of(config), classes=classes))
    monkeypatch.setattr(evaluation, "check_same_images", lambda *arguments: None)
    change(run / "summary.json", dataset=names[0] + names[6], device="".join(names), versions=dict.fromkeys(names, "x"))
    parsed = Attributes(page_of(run))
    assert parsed.open == [] and parsed.tags == expected.tags and parsed.names == expected.names
    assert len(parsed.addresses) == len(expected.addresses)
    for name in names:
        assert plain(name) in parsed.text
    assert all(character.isprintable() or character == "\n" for character in parsed.text)

    monkeypatch.setattr(sys, "argv", ["report", str(run), "--device", "".join(names)])
    assert main() == 1
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and errors.rstrip("\n").isprintable() and "[/]" in errors
