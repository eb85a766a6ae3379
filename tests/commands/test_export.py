"""Files from a finished run: what is written, what the table says, and what is refused in one line."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

from oekd_fast import load_student, register_architecture
from oekd_fast.data import load_dataset
from oekd_fast.export import ExportConfig, export, main
from oekd_fast.family.gate import Gate
from oekd_fast.family.saved import save_gate
from oekd_fast.models import registry
from oekd_fast.reporting.exported_run import networks_of
from oekd_fast.reporting.finished_runs import read_run
from oekd_fast.reporting.run_files import ReportError

from ..support.older_runs import RUNS, TINY
from ..support.reports import QUIET, change


@pytest.fixture(autouse=True)
def tiny_architecture(monkeypatch, one_thread):
    monkeypatch.setattr(registry, "_ARCHITECTURES", dict(registry._ARCHITECTURES))
    register_architecture(TINY)


@pytest.fixture
def run(tmp_path) -> Path:
    return shutil.copytree(RUNS / "finished", tmp_path / "run")


def command(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "80")
    return main()


def outputs(path: Path, images: torch.Tensor) -> dict:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, map(torch.from_numpy, session.run(None, {"images": images.numpy()})), strict=True))


def properties(path: Path) -> dict:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


@pytest.mark.slow
def test_by_default_every_student_becomes_an_onnx_file(run, monkeypatch, capsys):
    assert command(monkeypatch, run) == 0
    out, err = capsys.readouterr()
    assert err == ""
    names = ["student_1.onnx", "student_2.onnx"]
    assert sorted(path.name for path in (run / "exported").iterdir()) == names
    lines = out.splitlines()
    assert lines[:2] == [str(run / "exported" / name) for name in names]
    assert lines[2].split() == ["file", "size", "difference"]
    assert [line.split()[0] for line in lines[4:]] == names
    images = load_dataset("digits").test.gather(torch.arange(4))
    for number in (1, 2):
        student = load_student(run / "students" / f"student_{number}")
        expected = student(student.preprocess(images))
        found = outputs(run / "exported" / f"student_{number}.onnx", images)["logits"]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_the_ensemble_is_one_file_with_the_outputs_of_all_students(run, tmp_path):
    config = ExportConfig(run, ("2", "ensemble"), ("pt2",), tmp_path / "a" / "b", batch=3)
    files = export(config, QUIET)
    assert [file.path for file in files] == [tmp_path / "a" / "b" / f"{name}.pt2" for name in ("student_2", "ensemble")]
    assert all(file.accuracy is None and file.difference <= 1e-5 for file in files)
    extra = {"metadata.json": ""}
    program = torch.export.load(files[1].path, extra_files=extra).module()
    images = load_dataset("digits").test.gather(torch.arange(3))
    found = program(images)
    assert list(found) == ["logits_1", "logits_2", "ensemble"]
    students = [load_student(run / "students" / f"student_{number}") for number in (1, 2)]
    logits = [student(student.preprocess(images)) for student in students]
    torch.testing.assert_close(found["ensemble"], (logits[0] + logits[1]) / 2)
    torch.testing.assert_close(found["logits_2"], logits[1])
    described = json.loads(extra["metadata.json"])
    assert (described["student"], described["students"]) == ("ensemble", [1, 2])
    assert described["accuracy"] == json.loads((run / "summary.json").read_text())["ensemble_accuracy"]
    bases = {name.split(".")[2] for name in program.state_dict() if "bases" in name}
    assert len(bases) == 1  # the students share it


def test_a_gated_ensemble_uses_its_gate(run):
    change(run / "config.json", objective="one")
    torch.manual_seed(0)
    gate = Gate(4, 2)
    save_gate(gate, run / "students" / "gate.safetensors")
    (file,) = export(ExportConfig(run, ("ensemble",), ("pt2",)), QUIET)
    images = load_dataset("digits").test.gather(torch.arange(3))
    found = torch.export.load(file.path).module()(images)
    students = [load_student(run / "students" / f"student_{number}") for number in (1, 2)]
    weights = gate.eval()(students[0].base(students[0].preprocess(images)))
    expected = weights[:, :1] * found["logits_1"] + weights[:, 1:] * found["logits_2"]
    torch.testing.assert_close(found["ensemble"], expected)


@pytest.mark.slow
@pytest.mark.parametrize("preprocessing", [True, False])
def test_int8_states_its_accuracy_beside_that_of_float32(run, monkeypatch, capsys, preprocessing):
    options = [] if preprocessing else ["--no-preprocessing", "--batch", "7"]  # 359 test images are no multiple of 7
    assert command(monkeypatch, run, "--students", 2, "--int8", "--calibration-images", 50, *options) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-2:]]
    assert [row[0] for row in rows] == ["student_2.onnx", "student_2_int8.onnx"]
    path = run / "exported" / "student_2_int8.onnx"
    types = [node.op_type for node in onnx.load(path).graph.node]
    assert types.count("QuantizeLinear") >= 3 and {onnx.TensorProto.INT8} <= {
        tensor.data_type for tensor in onnx.load(path).graph.initializer
    }
    test = load_dataset("digits").test
    images = test.gather(torch.arange(len(test)))
    student = load_student(run / "students" / "student_2")
    inputs = images if preprocessing else student.preprocess(images)
    filled = torch.cat((inputs, inputs[:5]))  # to a multiple of 7
    logits = [outputs(path, batch)["logits"] for batch in (filled.split(7) if not preprocessing else [inputs])]
    predicted = torch.cat(logits).argmax(dim=1)[: len(test)]
    accuracy = 100 * (predicted == test.labels).double().mean().item()
    of_float = 100 * (student(student.preprocess(images)).argmax(1) == test.labels).double().mean().item()
    found = properties(path)
    assert float(found["accuracy"]) == pytest.approx(accuracy, abs=1e-4)
    assert float(found["float32_accuracy"]) == pytest.approx(of_float, abs=1e-4)
    assert [float(row[-1]) for row in rows] == pytest.approx([of_float, accuracy], abs=0.01)
    assert found["calibration_images"] == "50" and found["classes"] == json.dumps([str(n) for n in range(10)])


REFUSED = [
    (["--students", "3"], "students: expected numbers in 1..2 or ensemble, got 3"),
    (["--students", "0"], "students: expected numbers from 1, or ensemble, got '0'"),
    (["--students", "all"], "students: expected numbers from 1, or ensemble, got 'all'"),
    (["--format", "tflite"], "format: expected onnx or pt2, got 'tflite'"),
    (["--batch", "0"], "batch: expected an integer >= 1, got 0"),
    (["--int8", "--format", "pt2"], "int8: expected the format onnx, got pt2"),
    (["--int8", "--calibration-images", "0"], "calibration_images: expected an integer >= 1, got 0"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_options_out_of_range(run, monkeypatch, capsys, arguments, message):
    assert command(monkeypatch, run, *arguments) == 1
    assert capsys.readouterr() == ("", f"error: {message}\n")
    assert not (run / "exported").exists()


def test_a_run_without_students(run, monkeypatch, capsys):
    (run / "students" / "student_2.safetensors").unlink()
    assert command(monkeypatch, run) == 1
    expected = f"error: {run / 'students'}: expected weights of 2 students, got too few\n"
    assert capsys.readouterr() == ("", expected)


def test_folders_that_are_no_finished_runs(run, tmp_path, monkeypatch, capsys):
    (run / "summary.json").unlink()
    for folder, reason in ((tmp_path / "nowhere", "is not a folder"), (tmp_path, "no config.json"), (run, "--resume")):
        assert command(monkeypatch, folder) == 1
        out, err = capsys.readouterr()
        assert out == "" and reason in err and str(folder) in err and err.count("\n") == 1


def test_an_ensemble_whose_gate_is_missing(run, monkeypatch, capsys):
    change(run / "config.json", objective="one")
    assert command(monkeypatch, run, "--students", "ensemble") == 1
    message = f"error: {run / 'students'}: expected the gate of the ensemble, gate.safetensors, which is missing\n"
    assert capsys.readouterr().err == message


def test_an_ensemble_of_networks_that_a_run_does_not_keep():
    finished = read_run(RUNS / "finished")
    config = replace(finished.config, objective="snapshot", schedule="cyclic", snapshots=3)
    with pytest.raises(
        ReportError, match="^students: expected numbers, got ensemble; that of the objective snapshot is"
    ):
        networks_of(replace(finished, config=config), ["ensemble"])


def test_code_that_builds_the_network_runs_only_if_it_is_named(run, monkeypatch, capsys):
    change(run / "config.json", model="nets.py:make")
    assert command(monkeypatch, run) == 1
    err = capsys.readouterr().err
    assert err.endswith("which is not run unasked; --model nets.py:make runs it\n") and err.count("\n") == 1


def test_int8_loads_no_data_of_a_stranger_unasked(run, monkeypatch, capsys):
    change(run / "config.json", dataset="/home/somebody/images")
    assert command(monkeypatch, run, "--int8") == 1
    assert "is not loaded unasked; --with-data loads it" in capsys.readouterr().err


def test_the_folder_in_a_run_is_no_link(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "elsewhere").mkdir()
    (run / "exported").symlink_to(tmp_path / "elsewhere")
    assert command(monkeypatch, run) == 1
    assert "a symbolic link" in capsys.readouterr().err
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_missing_package_is_one_line(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert command(monkeypatch, run) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ONNX files need the package onnxruntime") and err.count("\n") == 1
    assert err.endswith("pip install 'oekd_fast[export]'\n")
