"""The chapter on using students: its lines run, its commands are understood, and its links lead to the files."""

import html
import re
import shlex
import shutil
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch

from oekd_fast.choice.pick import pick_student
from oekd_fast.config.options import parse
from oekd_fast.export import ExportConfig
from oekd_fast.models import register_architecture, registry
from oekd_fast.pick import PickConfig
from oekd_fast.reporting.finished_runs import read_run
from oekd_fast.reporting.use_chapter import use_chapter

from ..support.older_runs import RUNS, TINY
from ..support.reports import change, change_lines


@pytest.fixture
def folder(tmp_path) -> Path:
    return shutil.copytree(RUNS / "finished", tmp_path / "it's a run; $(x) <b>")


def chapter(*folders: Path, page: Path | None = None) -> str:
    return "\n".join(use_chapter([read_run(path) for path in folders], page or folders[0] / "report"))


def boxes(text: str) -> list[str]:
    """Return the texts of the boxes to copy."""
    return [html.unescape(found) for found in re.findall(r"<pre><code>(.*?)</code></pre>", text, re.DOTALL)]


def test_the_lines_load_each_student_and_predict_classes(folder, monkeypatch):
    monkeypatch.setattr(registry, "_ARCHITECTURES", dict(registry._ARCHITECTURES))
    register_architecture(TINY)
    monkeypatch.chdir(folder.parent)
    images = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    lines = [box for box in boxes(chapter(Path(folder.name))) if "load_student" in box]
    assert len(lines) == 2 and all("# uint8 [B, 1, 8, 8]" in box for box in lines)
    assert all("# 10 classes: '0', '1', '2', ..." in box for box in lines)
    monkeypatch.chdir(folder)  # paths are absolute
    for number, box in enumerate(lines, start=1):
        names = {"images": images}
        exec(box, names)
        assert names["student"].metadata.index == number
        assert len(names["names"]) == 3 and set(names["names"]) <= set("0123456789")


def test_the_commands_are_understood_and_pick_the_student(folder):
    commands = [line for box in boxes(chapter(folder)) for line in box.splitlines() if line.startswith("python -m")]
    for number in (1, 2):
        export, pick = (shlex.split(line) for line in commands[2 * number - 2 : 2 * number])
        assert export[:3] == ["python", "-m", "oekd_fast.export"] and pick[:3] == ["python", "-m", "oekd_fast.pick"]
        config = ExportConfig(**parse(ExportConfig, "export", export[3:]))
        assert config.run == folder and config.students == (str(number),)
        options = parse(PickConfig, "pick", pick[3:])
        parameters = read_run(folder).summary["students"][number - 1]["parameters"]
        assert options["run"] == folder and options["max_parameters"] == str(parameters)
    assert pick_student(folder, max_parameters=parameters).chosen.index == 2


def addresses(text: str) -> list[str]:
    return [unquote(html.unescape(found)) for found in re.findall(r'href="(.*?)"', text)]


@pytest.mark.parametrize("place", ["report", "a/b c", "../elsewhere"])
def test_links_lead_from_the_page_to_the_files(folder, place):
    exported = folder / "exported" / "student_2.onnx"
    exported.parent.mkdir()
    exported.write_bytes(b"x" * 1500)
    text = chapter(folder, page=folder / place)
    found = [(folder / place / address).resolve() for address in addresses(text)]
    expected = [folder / "students" / f"student_{j}{suffix}" for j in (1, 2) for suffix in (".safetensors", ".json")]
    assert found == [*expected, exported] and "student_2.onnx</a> (1.50 kB)" in text


def test_files_outside_of_the_run_are_not_linked(folder, tmp_path):
    (folder / "exported").mkdir()
    (folder / "exported" / "student_1.onnx").symlink_to(shutil.copy(folder / "config.json", tmp_path / "x"))
    assert "onnx</a>" not in chapter(folder)
    weights = folder / "students" / "student_2.safetensors"
    shutil.move(weights, tmp_path / "y")
    weights.symlink_to(tmp_path / "y")
    text = chapter(folder)
    assert addresses(text) == [] and "expected a file in the run folder, got a link to another folder" in text


def test_missing_weights_are_noted(folder):
    (folder / "students" / "student_1.safetensors").unlink()
    text = chapter(folder)
    assert text.count("The run has no weights of all students.") == 2 and "load_student" not in text


def test_damaged_metadata_leave_out_the_comments(folder):
    (folder / "students" / "student_1.json").write_text("{")
    first, second = (box for box in boxes(chapter(folder)) if "load_student" in box)
    assert "#" not in first.replace(str(folder), "") and "classes: " in second


def test_a_model_that_is_a_function_is_named(folder):
    change(folder / "config.json", model="my nets.py:make")
    text = chapter(folder)
    boxes_of_first = boxes(text)[:2]
    assert "architecture='my nets.py:make')" in boxes_of_first[0]
    export = shlex.split(boxes_of_first[1].splitlines()[0])
    assert ExportConfig(**parse(ExportConfig, "export", export[3:])).model == "my nets.py:make"


def test_of_several_seeds_each_student_is_the_best_on_validation_images(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    change(other / "config.json", seed=7)

    def better(line):
        if line["phase"] == "ensemble":
            line["validation"]["accuracy"][1] = 99.0

    change_lines(other / "metrics.jsonl", better)
    text = chapter(folder, other)
    assert "Student 1, seed 0:" in text and "Student 2, seed 7:" in text
    assert f"{other}/students/student_2" in text and f"{other}/students/student_1" not in text


def test_the_ensemble_is_one_file(folder):
    change(folder / "summary.json", ensemble={"parameters": 1600, "flops": 3e4, "file_bytes": None, "latency": None})
    last = shlex.split(boxes(chapter(folder))[-1])
    assert ExportConfig(**parse(ExportConfig, "export", last[3:])).students == ("ensemble",)
