"""The report of finished runs: contents of the page, notes on missing parts, and errors of the command."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from oekd_fast.common.checked_json import load_checked
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.report import ReportConfig, main
from oekd_fast.reporting.evidence import load_networks, one_of_each_class
from oekd_fast.reporting.finished_runs import read_run
from oekd_fast.reporting.predictions import predict
from oekd_fast.runs.device_data import dataset_of
from oekd_fast.runs.run import train

from ..support.reports import QUIET, Checker, change, change_lines, draw_nothing, page_of

PICTURES = (
    "sizes", "curves", "calibration", "agreement", "classes", "confusion", "confusion_others", "worst", "grad_cam",
)  # fmt: skip
CPU = torch.device("cpu")


@pytest.mark.slow
def test_the_page_is_complete_and_self_contained(drawn_run):
    text = (drawn_run / "report" / "index.html").read_text()
    assert sorted(p.name for p in (drawn_run / "report").iterdir()) == sorted(
        ["index.html", "confusion.json", *(f"{n}.png" for n in PICTURES)]
    )
    for name in PICTURES:
        with Image.open(drawn_run / "report" / f"{name}.png") as picture:
            assert picture.format == "PNG" and min(picture.size) > 150
    parsed = Checker(text)
    assert parsed.open == [] and not parsed.tags & {"script", "link", "iframe"}
    # Addresses are pictures in the page, parts of it, and files of the run relative to the page.
    for address in set(parsed.addresses):
        if address.startswith("#"):
            assert text.count(f'id="{address[1:]}"') == 1
        elif not address.startswith("data:image/png;base64,"):
            assert (drawn_run / "report" / address).is_file(), address
    assert "@import" not in text and all(
        text.count(f'id="{name}"') == 1 for name in re.findall(r"url\(#?(.*?)\)", text)
    )
    assert len(re.findall('<div class="wide" tabindex="0"><(?:svg|div) role="(?:img|group)"', text)) == len(PICTURES)
    summary = json.loads((drawn_run / "summary.json").read_text())
    for student in summary["students"]:
        assert f"<td>{student['accuracy']:.2f}</td>" in text and f"<td>{student['parameters']:,}</td>" in text
    assert summary["versions"]["torch"] in text and "<td>learning_rate</td>" in text
    assert 'class="note"' not in text
    networks = json.loads((drawn_run / "report" / "confusion.json").read_text())["networks"]
    assert [network["name"] for network in networks] == ["student 1", "student 2", "ensemble"]
    for network, student in zip(networks, summary["students"], strict=False):
        wrong = sum(images for _, _, images in network["confusions"])
        assert 100 * (1 - wrong / summary["test_images"]) == pytest.approx(student["accuracy"], abs=1e-3)


def test_accuracies_with_flips_have_columns_of_their_own(run):
    assert "flips:" not in page_of(run, with_data=False)
    students = load_checked((run / "summary.json").read_text())["students"]
    for j, student in enumerate(students):
        student |= {"accuracy_with_flips": 91.25 + j, "baseline_accuracy_with_flips": 81.25 + j}
    change(run / "summary.json", students=students, ensemble_accuracy_with_flips=99.75)
    text = page_of(run, with_data=False)
    for cell in ("91.25", "92.25", "81.25", "82.25", "99.75"):
        assert f"<td>{cell}</td>" in text
    assert "<th>with flips: in the family %</th>" in text


def test_text_is_escaped(run):
    text = page_of(run)
    assert "a&lt;b&gt;&amp;c" in text and "a<b>" not in text


def test_predictions_reproduce_the_accuracies_of_the_run(run):
    finished = read_run(run)
    networks, dataset = load_networks(finished, CPU), dataset_of(finished.config)
    result = predict(networks.students, networks.baselines, dataset.test, dataset.augmentation, CPU)
    assert result.names == ("student 1", "student 2", "ensemble", "student 1 alone", "student 2 alone")
    students = finished.summary["students"]
    expected = [s["accuracy"] for s in students] + [finished.summary["ensemble_accuracy"]]
    expected += [s["baseline_accuracy"] for s in students]
    assert result.accuracy() == pytest.approx(expected, abs=1e-3)
    assert result.confidence.min() >= 1 / 3 - 1e-6 and result.confidence.max() <= 1


def test_runs_that_differ_in_the_seed_are_averaged(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    change(other / "config.json", seed=1)
    summary = json.loads((other / "summary.json").read_text())
    summary["students"][0]["accuracy"] = 50.0
    change(run / "summary.json", ensemble_accuracy=90.0)
    change(other / "summary.json", students=summary["students"], ensemble_accuracy=80.0)
    text = page_of(run, other, output=tmp_path / "page")
    assert "2 runs, seeds 0, 1; 2 epochs; 30 test images; trained with oekd_fast " in text
    assert "-group" not in text and "of 2 runs (seeds 0, 1)" in text and "<td>85.00 ± 7.07</td>" in text
    # The accuracy of 50.0 was made up.
    assert "differ from summary.json by up to" in text


def test_runs_with_other_options_have_their_own_section(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    change(other / "config.json", temperature=3.0)
    text = page_of(run, other, output=tmp_path / "page")
    assert text.count("<h2>") == 2 and "temperature 3.0 (not 2.0)" in text
    # The contents and the overview lead to each part and its chapters.
    for target in ("1-group", "2-group", "1-headline", "2-settings"):
        assert text.count(f'id="{target}"') == 1 and f'href="#{target}"' in text
    assert {p.name for p in (tmp_path / "page").glob("*.png")} == {f"{i}_{n}.png" for i in (1, 2) for n in PICTURES}


def test_missing_weights_of_baselines_are_noted(run):
    shutil.rmtree(run / "baselines")
    text = page_of(run)
    assert "a run has no weights of baselines" in text and "<td>student 1 alone</td>" not in text
    assert all((run / "report" / f"{name}.png").exists() for name in PICTURES)


def test_a_missing_data_set_is_noted(run, trained, tmp_path):
    change(run / "config.json", dataset="no_such_data")
    text = page_of(run)
    assert "by class and Grad-CAM are missing: dataset: expected a known name" in text
    assert {p.stem for p in (run / "report").glob("*.png")} == {"sizes", "curves"}
    relocated = page_of(run, data_dir=trained.parent / "a<b>&c", output=tmp_path / "page")
    assert 'class="note"' not in relocated and "ECE" in relocated


def test_another_number_of_test_images_is_noted(run, tmp_path):
    change(run / "summary.json", test_images=29)
    assert re.search(r"expected the 29 test images of .*run, got 30", page_of(run))


def test_a_missing_gate_is_noted(run):
    change(run / "config.json", objective="one", ensemble_ce_weight=1.0)
    text = page_of(run)
    assert "&amp;c, one</h1>" in text and "uses the gate, which is missing" in text


@pytest.fixture(scope="module")
def gated(trained) -> Path:
    """A run with the objective "one", which has a gate, on the data of the other run."""
    config = TrainConfig(dataset=str(trained.parent / "a<b>&c"), objective="one", num_students=2, epochs=1,
                         batch_size=20, output_dir=trained.parent / "gated", progress=False, latency="off")  # fmt: skip
    train(config, QUIET)
    return config.run_folder


@pytest.mark.slow
def test_the_ensemble_of_the_report_uses_the_gate(gated, tmp_path, one_thread, monkeypatch):
    draw_nothing(monkeypatch)
    finished = read_run(gated)
    networks, dataset = load_networks(finished, CPU), dataset_of(finished.config)
    result = predict(networks.students, (), dataset.test, dataset.augmentation, CPU, networks.gate)
    assert result.accuracy()[-1] == pytest.approx(finished.summary["ensemble_accuracy"], abs=1e-3)

    # The expected values are computed by hand, with a gate whose weights differ from 1/2.
    with torch.no_grad():
        networks.gate.norm.bias.copy_(torch.tensor([0.0, 3.0]))
        result = predict(networks.students, (), dataset.test, dataset.augmentation, CPU, networks.gate)
        scaled = networks.students[0].preprocess(dataset.test.images)
        first, second = (student(scaled) for student in networks.students)
        weights = networks.gate(networks.students[0].base(scaled))
        expected = (weights[:, :1] * first + weights[:, 1:] * second).softmax(dim=1).max(dim=1)
    assert weights[:, 1].min() > 0.6
    assert torch.equal(result.predicted[-1], expected.indices)
    torch.testing.assert_close(result.confidence[-1], expected.values)

    assert 'class="note">Below, the ensemble' not in page_of(gated, output=tmp_path / "page")
    older = shutil.copytree(gated, tmp_path / "older", ignore=shutil.ignore_patterns("checkpoints"))
    (older / "students" / "gate.safetensors").unlink()
    assert "uses the gate, which is missing (older versions did not write students/gate.safetensors)" in page_of(older)
    # A group uses the gates only if all of its runs have them.
    change(older / "config.json", seed=1)
    assert "uses the gate, which is missing" in page_of(gated, older, output=tmp_path / "page")


def test_a_damaged_gate_is_noted(gated, tmp_path, one_thread, monkeypatch):
    draw_nothing(monkeypatch)
    copy = shutil.copytree(gated, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints"))
    (copy / "students" / "gate.safetensors").write_bytes(b"")
    assert re.search("Grad-CAM are missing: .*gate.safetensors: damaged", page_of(copy))


def repeat_first_student(run: Path, count: int, **fields) -> None:
    """Make the results of a run those of `count` students, each with the numbers of the first one."""
    summary = json.loads((run / "summary.json").read_text())
    students = [summary["students"][0] | {"index": j + 1} for j in range(count)]
    change(run / "summary.json", students=students, **fields)

    def repeat(line):
        if line["phase"] == "ensemble":
            for split, name in (("train", "ce"), ("train", "kd"), ("validation", "accuracy")):
                line[split][name] = line[split][name][:1] * count

    change_lines(run / "metrics.jsonl", repeat)


def test_an_ensemble_with_earlier_networks_is_noted(run):
    repeat_first_student(run, 1)
    change(run / "config.json", objective="snapshot", schedule="cyclic", snapshots=1)
    assert "also includes earlier networks" in page_of(run)


def test_paths_of_a_config_are_read_as_paths(run):
    names = ("data_dir", "initial_weights", "teacher")
    change(run / "config.json", objective="kd", **{name: f"somewhere/{name}" for name in names})
    config = read_run(run).config
    assert [getattr(config, name) for name in names] == [Path("somewhere", name) for name in names]


def test_another_objective_is_not_compared_with_the_paper(run, tmp_path):
    repeat_first_student(run, 5, dataset="cifar100")
    change(run / "config.json", objective="dml", dataset="cifar100", model="resnet32", num_students=5,
           data_dir=str(tmp_path))  # fmt: skip
    assert "paper: " not in page_of(run)


def test_a_family_of_one_is_not_compared_with_the_paper(run, tmp_path):
    repeat_first_student(run, 1, dataset="cifar100")
    changes = {"dataset": "cifar100", "model": "resnet32", "num_students": 5, "data_dir": str(tmp_path)}
    change(run / "config.json", objective="born_again", **changes)
    text = page_of(run)
    assert "resnet32 x 1 on cifar100, born_again" in text and "paper: " not in text
    change(run / "config.json", objective="oekd")
    repeat_first_student(run, 5)
    assert "paper: in the family %" in page_of(run)


def test_damaged_weights_are_noted(run):
    (run / "students" / "student_2.safetensors").write_bytes(b"")
    assert "damaged, or not saved together with student_2.json" in page_of(run)


def test_grad_cam_can_be_omitted_and_explain_the_true_class(run):
    page_of(run, images=0)
    assert not (run / "report" / "grad_cam.png").exists()
    assert "for the true class" in page_of(run, explain="true")
    assert (run / "report" / "grad_cam.png").exists()


def no_folder(run):
    shutil.rmtree(run)


def no_config(run):
    (run / "config.json").unlink()


def unfinished(run):
    (run / "summary.json").unlink()


def damaged_line(run):
    (run / "metrics.jsonl").write_text("{}\n")


def lost_line(run):
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:-1]))


def damaged_config(run):
    change(run / "config.json", epochs=0)


def old_summary(run):
    summary = load_checked((run / "summary.json").read_text())
    del summary["students"][0]["flops"]
    (run / "summary.json").write_text(json.dumps(summary))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_folder, "expected folders of finished runs, got {run}, which is not a folder"),
        (no_config, "expected run folders, got {run}, which has no config.json"),
        (unfinished, "got {run}, which has no summary.json; train with --resume to finish it"),
        (damaged_line, "{run}/metrics.jsonl, line 1, is damaged ('phase')"),
        (lost_line, "{run}/metrics.jsonl: expected 2 lines of the phase 'baseline_2', got 1"),
        (damaged_config, "{run}/config.json is damaged (epochs: expected an integer >= 1, got 0)"),
        (old_summary, "{run}/summary.json: students lack flops; it was written by an older version"),
    ],
)
def test_an_invalid_run_folder_is_a_one_line_error(run, damage, message, monkeypatch, capsys):
    damage(run)
    monkeypatch.setattr(sys, "argv", ["report", str(run)])
    assert main() == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: runs: ") and message.format(run=run) in errors and errors.count("\n") == 1
    assert not (run / "report").exists()


def test_the_command_prints_the_path_of_the_page(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report", str(run), "--with-data", "--images", "1", "--device", "cpu"])
    assert main() == 0
    assert capsys.readouterr().out == f"Report: {run}/report/index.html\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runs": ()}, "runs: expected at least one run folder, got none"),
        ({"runs": (Path("x"),), "images": -1}, "images: expected an integer >= 0, got -1"),
        ({"runs": (Path("x"),), "explain": "other"}, "explain: expected predicted or true, got 'other'"),
    ],
)
def test_invalid_options_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        ReportConfig(**options)


def test_images_are_from_classes_spread_over_all():
    labels = torch.tensor([3, 3, 0, 1, 0, 5, 1])  # classes 0, 1, 3 and 5
    assert one_of_each_class(labels, 2).tolist() == [2, 0]
    assert one_of_each_class(labels, 4).tolist() == [2, 3, 0, 5]
    assert one_of_each_class(labels, 6).tolist() == [2, 3, 0, 5, 4, 6]
    assert one_of_each_class(labels, 99).numel() == 7 and one_of_each_class(labels, 0).numel() == 0
