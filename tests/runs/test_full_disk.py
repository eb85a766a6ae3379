"""A disk that is full when results are written: nothing that exists is damaged, one line says so, --resume goes on."""

import json
import re
import shutil
import sys
from dataclasses import replace

import pytest

from oekd_fast import report, train
from oekd_fast.common.checked_json import load_checked
from oekd_fast.family.saved import load_gate, load_student
from oekd_fast.runs import run as runs
from oekd_fast.runs.checkpoint import load_latest_checkpoint

from ..support.file_calls import FullDisk
from ..support.forked_runs import smallest_config
from ..support.reports import draw_nothing
from ..support.small_runs import QUIET, assert_same_run, command_line

pytestmark = pytest.mark.usefixtures("smallest_model", "one_thread")
WRITE_PNG = runs.write_png
FULL = "error: [Errno 28] No space left on device"
RESULTS = [
    "summary.json", "students/student_1.safetensors", "students/student_1.json", "students/student_2.json",
    "students/gate.safetensors", "baselines/student_1.safetensors", "baselines/student_2.json",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory, smallest_model):
    """The config of a finished run with a gate and baselines."""
    root = tmp_path_factory.mktemp("full")
    config = replace(smallest_config(root / "data"), objective="one", output_dir=root / "run")
    train(config, QUIET)
    return config


@pytest.fixture
def command(monkeypatch, capsys):
    """Return a function that runs a command and returns its status, its output and its errors."""

    def run(module, *arguments):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        return module.main(), *capsys.readouterr()

    return run


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_whole(folder):
    """Check every file below `folder`, and that no part of a file is left."""
    assert not list(folder.rglob("*.tmp")) and not (folder / "run.lock").exists()
    for weights in folder.glob("*/student_*.safetensors"):
        if weights.with_suffix(".json").exists():
            load_student(weights)
    if (gate := folder / "students" / "gate.safetensors").exists():
        load_gate(gate, 2, 2)
    for file in (*folder.glob("summary.json"), folder / "config.json"):
        load_checked(file.read_text())
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        load_checked(line)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "there_before"),
    [*((name, False) for name in RESULTS), ("summary.json", True), ("students/student_1.json", True)],
)
def test_results_that_do_not_fit_are_written_by_resuming(trained, tmp_path, monkeypatch, command, name, there_before):
    folder = tmp_path / "run"
    ignored = () if there_before else ("summary.json", "students", "baselines")
    shutil.copytree(trained.run_folder, folder, ignore=shutil.ignore_patterns(*ignored))
    arguments, before = command_line(replace(trained, output_dir=folder, resume=True)), content(folder / "checkpoints")
    with monkeypatch.context() as patch:
        disk = FullDisk(patch, f"run/{name}")
        status, _, errors = command(train, *arguments)
    hint = "(the training is complete; --resume writes the results again)"
    assert disk.failed == 1 and status == 1 and errors == f"{FULL} {hint}: '{folder / name}'\n"
    assert content(folder / "checkpoints") == before
    check_whole(folder)
    assert (folder / name).exists() == there_before
    written = RESULTS[: RESULTS.index(name)]
    assert all((folder / other).exists() for other in written)
    status, _, errors = command(train, *arguments)
    assert status == 0 and errors == ""
    assert_same_run(trained.run_folder, folder)
    assert content(folder / "baselines") == content(trained.run_folder / "baselines")


def test_a_picture_that_does_not_fit_does_not_fail_the_run(trained, tmp_path, monkeypatch, command):
    folder = shutil.copytree(trained.run_folder, tmp_path / "run")
    (folder / "report.png").write_bytes(b"an older picture")
    monkeypatch.setattr(runs, "write_png", WRITE_PNG)
    monkeypatch.setattr("oekd_fast.figures.plotting.png", lambda draw: b"a picture")
    FullDisk(monkeypatch, "report.png")
    status, output, errors = command(train, *command_line(replace(trained, output_dir=folder, resume=True)))
    assert status == 0 and errors == ""
    line = f"{folder / 'report.png'}: the picture could not be written "
    assert f"{line}([Errno 28] No space left on device: '{folder / 'report.png'}'); the results are complete" in output
    assert (folder / "report.png").read_bytes() == b"an older picture"
    check_whole(folder)


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json", ".pt"])
def test_a_training_whose_files_do_not_fit_is_finished_by_resuming(trained, tmp_path, monkeypatch, command, name):
    config = replace(trained, output_dir=tmp_path / "run")
    with monkeypatch.context() as patch:
        FullDisk(patch, name)
        status, _, errors = command(train, *command_line(config))
    assert status == 1 and re.fullmatch(r"error: .*No space left on device.*\n", errors), errors
    assert str(tmp_path / "run") in errors
    assert not (tmp_path / "run" / "summary.json").exists() and not list((tmp_path / "run").rglob("*.tmp"))
    status, _, errors = command(train, *command_line(replace(config, resume=True)))
    assert status == 0 and errors == ""
    assert_same_run(trained.run_folder, config.run_folder)


def test_a_line_of_metrics_that_does_not_fit_leaves_the_checkpoint_of_its_epoch(
    trained, tmp_path, monkeypatch, command
):
    config, folder = replace(trained, output_dir=tmp_path / "run"), tmp_path / "run"
    add, lines = runs.RunFolder.add_metrics, []
    with monkeypatch.context() as patch:

        def adding(self, line):
            lines.append(line)
            if len(lines) == 2:
                FullDisk(patch, "metrics.jsonl")
            add(self, line)

        patch.setattr(runs.RunFolder, "add_metrics", adding)
        status, _, errors = command(train, *command_line(config))
    assert status == 1 and errors == f"{FULL}: '{folder / 'metrics.jsonl'}'\n"
    assert [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [1]
    assert load_latest_checkpoint(folder / "checkpoints" / "ensemble").state["epoch"] == 2
    status, _, _ = command(train, *command_line(replace(config, resume=True)))
    assert status == 0
    assert_same_run(trained.run_folder, folder)


@pytest.mark.parametrize("name", ["index.html", ".png"])
def test_a_page_that_does_not_fit_is_one_line(trained, tmp_path, monkeypatch, command, name):
    draw_nothing(monkeypatch)
    page = tmp_path / "page"
    page.mkdir()
    (page / "index.html").write_text("an older page")
    FullDisk(monkeypatch, name)
    status, _, errors = command(report, trained.run_folder, "--output", page, "--device", "cpu")
    assert status == 1 and re.fullmatch(rf"{re.escape(FULL)}: '{page}/.*{name}'\n", errors), errors
    assert (page / "index.html").read_text() == "an older page" and not list(page.rglob("*.tmp"))
