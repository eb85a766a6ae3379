"""Whole runs: what they train and what they write."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from oekd_fast import load_student
from oekd_fast.common.checked_json import load_checked
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import Augmentation, DataError, ImageDataset, ResizedCrop, Split, centre, load_dataset
from oekd_fast.family.saved import GATE_FILE
from oekd_fast.reproduction.seeds import finished
from oekd_fast.runs.device_data import DeviceData, dataset_of
from oekd_fast.runs.phase import Phase
from oekd_fast.runs.plan import phase_task
from oekd_fast.runs.run import train
from oekd_fast.runs.run_folder import RunFolder

from ..models.published_nets import published
from ..support.small_runs import (
    CPU,
    QUIET,
    metrics_without_times,
)


@pytest.mark.slow
def test_a_run_writes_students_metrics_summary_and_report(config, picture):
    config = replace(config, baseline=True)
    summary = train(config, QUIET)
    folder = config.output_dir
    assert {p.name for p in folder.iterdir()} == {
        "config.json", "metrics.jsonl", "summary.json", "report.png", "checkpoints", "students", "baselines",
    }  # fmt: skip
    assert load_checked((folder / "config.json").read_bytes()) == replace(config, precision="fp32").as_dict()
    assert load_checked((folder / "summary.json").read_bytes()) == json.loads(json.dumps(summary))

    phases = ["ensemble", "baseline_1", "baseline_2"]
    lines = metrics_without_times(folder)
    assert [(line["phase"], line["epoch"]) for line in lines] == [(p, e) for p in phases for e in (1, 2, 3)]
    assert lines[0]["step"] == 3 and len(lines[0]["train"]["ce"]) == 2 and lines[0]["train"]["feature"] > 0

    first, second = summary["students"]
    assert (first["index"], second["index"]) == (1, 2)
    assert first["relative_size"] == 100.0 and second["parameters"] < first["parameters"]
    assert first["flops"] > second["flops"] > 0
    for student in (first, second):
        gain = 100 * (student["accuracy"] - student["baseline_accuracy"]) / student["baseline_accuracy"]
        assert student["relative_gain"] == pytest.approx(gain, abs=1e-4)
    assert summary["ensemble_accuracy"] > 50 and summary["images_per_second"] > 0 and summary["seconds"] > 0
    with Image.open(folder / "report.png") as picture:
        assert picture.width > 1000

    test = load_dataset(config.dataset).test
    for j, student in enumerate(summary["students"], start=1):
        for saved, accuracy in (("students", student["accuracy"]), ("baselines", student["baseline_accuracy"])):
            loaded = load_student(folder / saved / f"student_{j}.safetensors")
            assert (loaded.metadata.index, loaded.metadata.parameters) == (j, student["parameters"])
            with torch.no_grad():
                right = (loaded(loaded.preprocess(test.images)).argmax(1) == test.labels).double().mean().item()
            assert 100 * right == pytest.approx(accuracy, abs=1e-4)


def write_photographs(folder: Path) -> Path:
    """Write 60 images of two classes, light and dark; one of them is damaged."""
    generator = np.random.default_rng(0)
    for index in range(60):
        path = folder / ("dark", "light")[index % 2] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = generator.integers(0, 128, (10 + index % 5, 9 + index % 7, 3), dtype=np.uint8) + 127 * (index % 2)
        Image.fromarray(image.astype(np.uint8)).save(path)
    path.write_bytes(b"no image")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["auto", "stream"])
def test_a_folder_of_photographs_trains(config, tmp_path, placement):
    folder, lines = write_photographs(tmp_path / "photographs"), io.StringIO()
    config = replace(
        config, dataset=str(folder), augmentation="resized_crop", image_size=8, flip=True, skip_corrupt=True, epochs=2,
        batch_size=16, data_placement=placement,
    )  # fmt: skip
    with pytest.raises(DataError, match="cannot read image .*59.png"):
        train(replace(config, skip_corrupt=False), QUIET)
    summary = train(config, Console(file=lines, width=500))
    assert "left out 1 of 60 images, which cannot be decoded: " in lines.getvalue()
    assert summary["ensemble_accuracy"] > 50
    loaded = load_student(config.output_dir / "students" / "student_1")
    assert loaded.metadata.image_size == 8
    test = load_dataset(str(folder), augmentation="resized_crop", image_size=8, skip_corrupt=True).test
    with torch.no_grad():
        seen = centre(test.images, ResizedCrop(8, flip=True))
        right = (loaded(loaded.preprocess(seen)).argmax(1) == test.labels).double().mean().item()
    assert test.image_shape == (3, 9, 9) and seen.shape[2:] == (8, 8)
    assert 100 * right == pytest.approx(summary["students"][0]["accuracy"], abs=1e-4)


def test_the_config_changes_the_augmentation_of_the_data_set():
    split = Split(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4) % 2)

    def chosen(augmentation, **fields):
        data = ImageDataset("toy", split, split, split, ("a", "b"), augmentation)
        return DeviceData.of(data, TrainConfig(**fields), torch.device("cpu")).augmentation

    assert chosen(Augmentation(1, True), pad=2, flip=False) == Augmentation(2, False)
    assert chosen(ResizedCrop(7, True), flip=False) == ResizedCrop(7, False)
    assert chosen(Augmentation(0, False), augment=False, pad=2, flip=True) == Augmentation(0, False)
    with pytest.raises(DataError, match="pad: digits has resized crops, which have no padding, got 2"):
        chosen(ResizedCrop(7, True), pad=2)


def test_unpublished_normalisation_raises(config):
    with pytest.raises(DataError, match="normalisation: expected 'computed', got 'published'; .* has no published"):
        train(replace(config, normalisation="published"), QUIET)


def test_without_baseline_the_gains_are_null(smallest):
    summary = train(smallest, QUIET)
    assert [s["baseline_accuracy"] for s in summary["students"]] == [None, None]
    assert [s["relative_gain"] for s in summary["students"]] == [None, None]


@pytest.mark.slow
def test_student_1_and_the_base_start_from_published_weights(config, tmp_path):
    name, net = published("resnet18", num_classes=7)
    torch.save(net.state_dict(), tmp_path / "published.pth")
    short = replace(config, model=name, epochs=1, freeze_base=True, initial_weights=tmp_path / "published.pth")
    train(short, QUIET)
    for j in (1, 2):
        assert torch.equal(load_student(config.run_folder / f"students/student_{j}").base.conv.weight, net.conv1.weight)
    with pytest.raises(ValueError, match="^initial_weights: state_dict: the tensors are not those of the student"):
        train(replace(short, model="resnet20", output_dir=tmp_path / "other"), QUIET)
    torch.save([net.state_dict()], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="^initial_weights: state_dict: expected a mapping of names to tensors, got "):
        train(replace(short, initial_weights=tmp_path / "list.pth", output_dir=tmp_path / "other"), QUIET)
    with pytest.raises(FileNotFoundError, match="^initial_weights: .*missing.pth is missing$"):
        train(replace(short, initial_weights=tmp_path / "missing.pth", output_dir=tmp_path / "other"), QUIET)
    assert not (tmp_path / "other").exists()


def test_a_baseline_starts_from_the_published_base(config, tmp_path):
    """Everything but the base starts as it does without published weights."""
    name, net = published("resnet18", num_classes=7)
    torch.save(net.state_dict(), tmp_path / "published.pth")
    plain = replace(config, model=name)
    data, made, drawn = DeviceData.of(dataset_of(plain), plain, CPU), [], []
    for chosen in (plain, replace(plain, initial_weights=tmp_path / "published.pth")):
        task = phase_task("baseline_2", chosen, data, {}, None)
        made.append(Phase(task, chosen, data, RunFolder(chosen), CPU).engine.ensemble)
        drawn.append(torch.get_rng_state())
    without, given = made
    assert torch.equal(given.base.conv.weight, net.conv1.weight)
    assert torch.equal(given.base.norm.running_var, net.bn1.running_var)
    assert not torch.equal(without.base.conv.weight, net.conv1.weight)
    for one, other in zip(given.branches.parameters(), without.branches.parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(*drawn)


@pytest.mark.parametrize("objective", ["one", "dml", "codistillation", "fitnets", "independent"])
def test_every_objective_trains_a_family(smallest, objective):
    chosen = replace(smallest, objective=objective)
    summary = train(chosen, QUIET)
    assert summary["objective"] == objective and len(summary["students"]) == 2
    accuracies = [student[name] for student in summary["students"] for name in ("accuracy", "last_epoch_accuracy")]
    accuracies += [summary["ensemble_accuracy"], summary["last_epoch_ensemble_accuracy"]]
    assert all(0 <= accuracy <= 100 for accuracy in accuracies)
    assert finished(replace(chosen, resume=True)) == json.loads(json.dumps(summary))
    (line,) = metrics_without_times(chosen.run_folder)
    assert (line["train"]["feature"] > 0) == (objective == "fitnets")
    files = {path.name for path in (chosen.run_folder / "students").iterdir()}
    own = {f"student_{j}.{suffix}" for j in (1, 2) for suffix in ("json", "safetensors")}
    assert files == (own | {GATE_FILE} if objective == "one" else own)


def test_the_best_test_epoch_is_recorded_and_does_not_affect_the_selection(smallest, tmp_path):
    config = replace(smallest, epochs=3)
    plain = train(replace(config, baseline=True), QUIET)
    again = replace(config, baseline=True, track_test=True, output_dir=tmp_path / "again")
    summary = train(again, QUIET)
    lines = metrics_without_times(again.output_dir)
    tests = [line.pop("test") for line in lines]
    assert lines == metrics_without_times(config.output_dir)
    family, second_alone = tests[:3], tests[6:]
    for j, (student, before) in enumerate(zip(summary["students"], plain["students"], strict=True)):
        best = max(test["accuracy"][j] for test in family)
        assert student["best_test_accuracy"] == pytest.approx(best, abs=1e-4)
        assert student["best_test_accuracy"] >= student["accuracy"]
        assert student["last_epoch_accuracy"] == pytest.approx(family[-1]["accuracy"][j], abs=1e-4)
        assert before["best_test_accuracy"] is None and before["best_test_baseline_accuracy"] is None
        assert student["accuracy"] == before["accuracy"]
    best = max(test["accuracy"][0] for test in second_alone)
    assert summary["students"][1]["best_test_baseline_accuracy"] == pytest.approx(best, abs=1e-4)
    assert summary["best_test_ensemble_accuracy"] == pytest.approx(
        max(test["ensemble_accuracy"] for test in family), abs=1e-4
    )
    assert plain["best_test_ensemble_accuracy"] is None


def test_the_best_test_accuracy_is_null_unless_every_epoch_was_tested(smallest):
    train(smallest, QUIET)
    summary = train(replace(smallest, resume=True, track_test=True), QUIET)
    assert summary["students"][0]["best_test_accuracy"] is None
