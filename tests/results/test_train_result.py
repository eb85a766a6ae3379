"""What `train` returns: a dictionary with the summary that shows itself and knows its students."""

import copy
import html.parser
import io
import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

import oekd_fast
from oekd_fast import TrainResult
from oekd_fast.choice.choose import NothingFitsError
from oekd_fast.common.checked_json import load_checked
from oekd_fast.family.saved import LoadedStudent
from oekd_fast.report import ReportConfig
from oekd_fast.reporting.run_files import ReportError
from oekd_fast.results import html as html_of_results
from oekd_fast.results import train_result

STORED = Path(__file__).parents[1] / "fixtures" / "runs_of_0_1_0" / "finished"


def test_it_is_the_summary_as_a_dictionary(result, config):
    summary = load_checked((config.run_folder / "summary.json").read_text())
    assert isinstance(result, dict) and result == summary
    assert json.loads(json.dumps(result)) == json.loads(json.dumps(dict(result))) == summary
    assert result["students"][0]["accuracy"] == summary["students"][0]["accuracy"]
    assert {**result} == summary and type(result | {"more": 1}) is dict
    assert result.run_folder == config.run_folder


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copy_has_the_same_students(result, copied):
    other = copied(result)
    assert type(other) is TrainResult and other == result and other is not result
    assert other.run_folder == result.run_folder and other.students == result.students


def test_the_students_are_in_order_and_load_as_networks(result):
    assert len(result.students) == 2
    for student, entry in zip(result.students, result["students"], strict=True):
        assert (student.index, student.parameters) == (entry["index"], entry["parameters"])
        assert (student.accuracy, student.baseline_accuracy) == (entry["accuracy"], entry["baseline_accuracy"])
        network = student.load()
        assert isinstance(network, LoadedStudent) and not network.training
        assert sum(parameter.numel() for parameter in network.parameters()) == student.parameters
        images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
        assert network(network.preprocess(images)).shape == (2, 3)
    with pytest.raises(AttributeError):
        result.students[0].accuracy = 100.0


def test_the_metrics_are_the_lines_of_the_file(result):
    lines = (result.run_folder / "metrics.jsonl").read_text().splitlines()
    assert result.metrics == [load_checked(line) for line in lines]
    assert [line["phase"] for line in result.metrics] == [name for name in result["phases"] for _ in range(2)]


def test_a_student_is_picked_with_the_options_of_pick_student(result):
    smallest = result.students[-1]
    choice = result.pick(max_parameters=smallest.parameters)
    assert choice.chosen.index == 2 and choice.weights == smallest.path
    assert result.pick(max_parameters="100M", max_bytes="1G").chosen.index in (1, 2, None)
    with pytest.raises(NothingFitsError, match="^budget: nothing fits; the closest is student 2"):
        result.pick(max_parameters=1)
    with pytest.raises(ValueError, match="^budget: expected at least one of"):
        result.pick()


@pytest.fixture
def reports(monkeypatch) -> list[tuple]:
    """The configs and consoles that reports are written for; nothing is written."""
    made = []
    monkeypatch.setattr(train_result, "report", lambda *arguments: made.append(arguments) or Path("page/index.html"))
    return made


def test_the_report_of_a_run_of_ones_own_has_its_data(result, reports):
    console = Console(quiet=True)
    assert result.report(console, output="page", images=0) == Path("page/index.html")
    expected = ReportConfig(runs=(result.run_folder,), output=Path("page"), images=0, with_data=True)
    assert reports == [(expected, console)]
    with pytest.raises(TypeError, match="colour"):
        result.report(colour="red")


def test_the_report_of_a_folder_that_may_be_a_strangers_is_without_data(result, reports):
    TrainResult.of_run(result.run_folder).report()
    TrainResult.of_run(result.run_folder).report(with_data=True)
    assert [config.with_data for config, _ in reports] == [False, True]


def test_the_report_of_a_network_of_ones_own_runs_its_function(run_of_a_function, reports):
    own = TrainResult.of_run(run_of_a_function, own=True)
    own.report()
    TrainResult.of_run(run_of_a_function).report()
    assert [config.model for config, _ in reports] == [own["model"], None]


def test_a_finished_folder_gives_the_same_result(result):
    read = TrainResult.of_run(str(result.run_folder))
    assert read == result and repr(read) == repr(result) and read.students == result.students
    assert oekd_fast.TrainResult is TrainResult


def test_a_run_of_an_older_version_is_shown():
    read = TrainResult.of_run(STORED)
    assert "tiny x 2 on digits, test accuracy" in repr(read)
    assert "ensemble 14.76 %, 359 test images, epoch 3 of 3 selected" in repr(read)
    assert len(read.metrics) == 9 and [student.parameters for student in read.students] == [1366, 494]


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ReportError, match="^runs: expected run folders, got .*, which has no config.json$"):
        TrainResult.of_run(tmp_path)
    with pytest.raises(ReportError, match="which is not a folder$"):
        TrainResult.of_run(tmp_path / "missing")


def test_weights_that_are_a_link_to_another_folder_are_refused(result, tmp_path):
    folder = tmp_path / "students"
    folder.mkdir()
    (folder / "student_1.safetensors").symlink_to(result.students[0].path)
    (first, second) = TrainResult(result, tmp_path).students
    with pytest.raises(ReportError, match="expected a file in the run folder, got a link to another folder$"):
        first.load()
    with pytest.raises(FileNotFoundError, match="^path: a student needs .*student_2.safetensors, which is missing$"):
        second.load()


def test_code_of_a_run_is_called_for_its_owner_alone(run_of_a_function):
    calls = run_of_a_function.parent / "calls"
    strange = TrainResult.of_run(run_of_a_function)
    with pytest.raises(ValueError, match="architecture"):
        strange.students[1].load()
    assert not calls.exists()
    own = TrainResult.of_run(run_of_a_function, own=True)
    assert own.students[1].load().metadata.num_classes == 3
    assert calls.exists()
    assert strange.students[1].load(own["model"]).metadata.index == 2


def test_the_text_is_the_table_within_80_columns(result):
    lines = repr(result).splitlines()
    assert lines[0].startswith("smallest x 2 on ") and lines[-1].startswith("ensemble ")
    table = lines[1:-1]
    assert table[0].split("  ")[0] == "student" and max(map(len, table)) <= 80
    assert [row.split()[0] for row in table[2:]] == ["1", "2"]
    assert f"{result.students[0].parameters:,}" in table[2] and "\x1b" not in repr(result)
    assert str(result) == repr(result)


def test_rich_prints_the_table_in_the_width_of_its_console(result):
    printed = io.StringIO()
    Console(file=printed, width=40).print(result)
    assert "accuracy %" in printed.getvalue() and "baseline %" not in printed.getvalue()


class Elements(html.parser.HTMLParser):
    """Counts the elements of a page and checks that they are nested."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.counts, self._open, self.sources, self.text = {}, [], [], ""
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("img", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_notebook_shows_a_table_and_a_picture_without_other_files(result):
    page = result._repr_html_()
    elements = Elements(page)
    assert elements.counts["table"] == 1 and elements.counts["tr"] == 3
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in elements.sources)
    assert len(elements.sources) == 1
    assert "gain %" in elements.text
    # The name of the data set is text; colours are those of the notebook, which may be dark.
    assert "colours<b>" in elements.text and "b" not in elements.counts
    assert not re.search(r"color|background", page.split("<img")[0])
    assert f"{result['ensemble_accuracy']:.2f} %" in elements.text


def test_a_run_without_baselines_has_no_columns_of_them(result, monkeypatch):
    monkeypatch.setattr(html_of_results, "png", lambda draw: b"a picture")
    students = [{**student, "baseline_accuracy": None, "relative_gain": None} for student in result["students"]]
    text = Elements(TrainResult({**result, "students": students}, "run")._repr_html_()).text
    assert "accuracy %" in text and "gain %" not in text and "baseline %" not in text


def test_names_in_a_run_of_a_stranger_are_text(result, monkeypatch):
    monkeypatch.setattr(html_of_results, "png", lambda draw: b"a picture")
    page = TrainResult({**result, "model": "<script>", "dataset": 'a"&\x1b'}, "run")._repr_html_()
    elements = Elements(page)
    assert "script" not in elements.counts and '<script> x 2 on a"&\\x1b, test accuracy' in elements.text
