"""Whole runs: results, exact resume, faults, messages. Data: small arrays that a network can learn."""

import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from oekd_fast import load_student
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import Augmentation, DataError, ImageDataset, ResizedCrop, Split, centre, load_dataset
from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.family.saved import GATE_FILE, Normalisation, StudentMetadata, save_student
from oekd_fast.family.teacher import Teacher
from oekd_fast.losses import reference
from oekd_fast.losses.calls import KDOptions
from oekd_fast.reproduction.seeds import finished
from oekd_fast.runs.checkpoint import load_latest_checkpoint
from oekd_fast.runs.device_data import DeviceData, dataset_of
from oekd_fast.runs.interrupt import Interrupted
from oekd_fast.runs.phase import Phase, TrainingDiverged
from oekd_fast.runs.plan import phase_task
from oekd_fast.runs.run import train
from oekd_fast.runs.run_folder import RunFolder, RunFolderError
from oekd_fast.training.engine import Engine

from ..models.published_nets import published

CPU, QUIET = torch.device("cpu"), Console(quiet=True)
TIMES = ("seconds", "images_per_second")


@pytest.fixture(scope="module")
def arrays(tmp_path_factory) -> Path:
    """Three classes told apart by their brightest channel; 8x8."""
    folder = tmp_path_factory.mktemp("arrays")
    generator = np.random.default_rng(0)
    for split, count in (("train", 90), ("test", 30)):
        labels = np.arange(count) % 3
        images = generator.integers(0, 160, (count, 8, 8, 3), dtype=np.uint8)
        images[np.arange(count), :, :, labels] += 90
        np.save(folder / f"{split}.images.npy", images)
        np.save(folder / f"{split}.labels.npy", labels)
    return folder


@pytest.fixture
def config(arrays, tmp_path) -> TrainConfig:
    return TrainConfig(
        dataset=str(arrays),
        num_students=2,
        epochs=3,
        batch_size=20,
        validation_fraction=0.2,
        output_dir=tmp_path / "run",
        warmup_epochs=0.5,
        learning_rate=0.05,
        progress=False,
    )


def metrics_without_times(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def results_without_times(folder: Path) -> dict:
    summary = json.loads((folder / "summary.json").read_text())
    summary["phases"] = {name: phase["selected_epoch"] for name, phase in summary["phases"].items()}
    return {key: value for key, value in summary.items() if key not in TIMES}


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, optimizer, random state, metrics and results, bit for bit."""
    assert metrics_without_times(one) == metrics_without_times(other)
    assert results_without_times(one) == results_without_times(other)
    for phase in sorted(p.name for p in (one / "checkpoints").iterdir()):
        states = [load_latest_checkpoint(folder / "checkpoints" / phase).state for folder in (one, other)]
        assert_equal_except_times(*states, where=phase)
    for file in sorted((one / "students").iterdir()):
        assert file.read_bytes() == (other / "students" / file.name).read_bytes(), file.name


def assert_equal_except_times(one, other, where):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            if key not in (*TIMES, "epoch_seconds"):
                assert_equal_except_times(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, pair in enumerate(zip(one, other, strict=True)):
            assert_equal_except_times(*pair, where=f"{where}[{i}]")
    else:
        assert one == other, where


def at_step(monkeypatch, step, action):
    """Do `action` right before training step `step` (from 1, over all phases)."""
    original, done = Engine.step, [0]

    def patched(self):
        done[0] += 1
        if done[0] == step:
            action()
        return original(self)

    monkeypatch.setattr(Engine, "step", patched)


def test_a_run_leaves_everything_that_was_promised(config):
    config = replace(config, baseline=True)
    summary = train(config, QUIET)
    folder = config.output_dir
    assert {p.name for p in folder.iterdir()} == {
        "config.json", "metrics.jsonl", "summary.json", "report.png", "checkpoints", "students", "baselines",
    }  # fmt: skip
    assert json.loads((folder / "config.json").read_text()) == config.as_dict()
    assert json.loads((folder / "summary.json").read_text()) == json.loads(json.dumps(summary))

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
    """Two classes, light and dark; one of the sixty images is damaged."""
    generator = np.random.default_rng(0)
    for index in range(60):
        path = folder / ("dark", "light")[index % 2] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = generator.integers(0, 128, (10 + index % 5, 9 + index % 7, 3), dtype=np.uint8) + 127 * (index % 2)
        Image.fromarray(image.astype(np.uint8)).save(path)
    path.write_bytes(b"no image")
    return folder


@pytest.mark.parametrize("placement", ["auto", "stream"])
def test_a_folder_of_photographs(config, tmp_path, placement):
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


def test_what_the_data_set_does_not_have_is_refused(config):
    with pytest.raises(DataError, match="normalisation: expected 'computed', got 'published'; .* has no published"):
        train(replace(config, normalisation="published"), QUIET)


def test_without_baseline_the_gains_are_null(config):
    summary = train(replace(config, epochs=1), QUIET)
    assert [s["baseline_accuracy"] for s in summary["students"]] == [None, None]
    assert [s["relative_gain"] for s in summary["students"]] == [None, None]


def test_published_weights_are_where_student_1_and_the_base_start(config, tmp_path):
    name, net = published("resnet18", num_classes=7)
    torch.save(net.state_dict(), tmp_path / "published.pth")
    short = replace(config, model=name, epochs=1, freeze_base=True, initial_weights=tmp_path / "published.pth")
    train(short, QUIET)
    for j in (1, 2):
        assert torch.equal(load_student(config.run_folder / f"students/student_{j}").base.conv.weight, net.conv1.weight)
    with pytest.raises(ValueError, match="^initial_weights: state_dict: the tensors are not those of the student"):
        train(replace(short, model="resnet20", output_dir=tmp_path / "other"), QUIET)
    torch.save({"state_dict": net.state_dict()}, tmp_path / "nested.pth")
    with pytest.raises(ValueError, match="^initial_weights: state_dict: expected a tensor as 'state_dict', got "):
        train(replace(short, initial_weights=tmp_path / "nested.pth", output_dir=tmp_path / "other"), QUIET)
    with pytest.raises(FileNotFoundError, match="^initial_weights: .*missing.pth is missing$"):
        train(replace(short, initial_weights=tmp_path / "missing.pth", output_dir=tmp_path / "other"), QUIET)
    assert not (tmp_path / "other").exists()


def test_a_baseline_has_the_published_base_too(config, tmp_path):
    """So that its gain is not that of published weights; all else starts as it does without them."""
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


# -- a teacher from outside


@pytest.fixture
def teacher(config, tmp_path) -> Path:
    """Of three classes in colour, with maps of three blocks; not trained."""
    torch.manual_seed(0)
    family = build_ensemble("resnet20", 1, 3)
    metadata = StudentMetadata.of(
        family, 0, image_size=8, classes="abc", normalisation=Normalisation((0.5,) * 3, (0.2,) * 3)
    )
    return save_student(family.student(0), tmp_path / "teacher", metadata)


def refuse_teacher(config: TrainConfig, error: type[Exception], message: str) -> None:
    """Before anything is trained, though there are phases before the one that it teaches."""
    with pytest.raises(error, match=message):
        train(replace(config, pretrain_epochs=1), QUIET)
    assert not config.output_dir.exists()


def test_a_teacher_that_does_not_fit_is_refused_at_once(config, teacher, monkeypatch):
    chosen = replace(config, objective="kd", teacher=teacher)
    message = f"^teacher: expected 10 classes, as the data set has, got 3 in {teacher}$"
    refuse_teacher(replace(chosen, dataset="digits"), ValueError, message)
    shallow = Teacher(load_student(teacher), ((0.5,) * 3, (0.2,) * 3), (16, 32), 3, 3)
    monkeypatch.setattr(Teacher, "load", lambda path: shallow)
    message = f"^teacher: expected maps of 3 blocks, as resnet20 has, got 2 in {teacher}$"
    refuse_teacher(replace(chosen, objective="fitnets"), ValueError, message)


def test_a_missing_or_damaged_teacher_is_named(config, teacher):
    chosen = replace(config, objective="kd", teacher=teacher)
    teacher.write_bytes(teacher.read_bytes()[:-1])
    refuse_teacher(chosen, ValueError, "^teacher: .*teacher.safetensors: damaged")
    teacher.unlink()
    refuse_teacher(chosen, FileNotFoundError, "^teacher: a student needs .*teacher.safetensors, which is missing$")


# -- every objective


@pytest.mark.parametrize("objective", ["one", "dml", "codistillation", "fitnets", "independent"])
def test_a_family_is_trained_by_every_objective(config, objective):
    chosen = replace(config, objective=objective, epochs=1)
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


def test_the_best_test_epoch_is_kept_apart_and_chooses_nothing(config, tmp_path):
    plain = train(replace(config, baseline=True), QUIET)
    again = replace(config, baseline=True, track_test=True, output_dir=tmp_path / "again")
    summary = train(again, QUIET)
    lines = metrics_without_times(again.output_dir)
    tests = [line.pop("test") for line in lines]
    assert lines == metrics_without_times(config.output_dir)
    family, second_alone = tests[:3], tests[6:]
    for j, (student, before) in enumerate(zip(summary["students"], plain["students"], strict=True)):
        best = max(test["accuracy"][j] for test in family)
        assert student["best_test_accuracy"] == pytest.approx(best, abs=1e-4) and best >= student["accuracy"]
        assert student["last_epoch_accuracy"] == pytest.approx(family[-1]["accuracy"][j], abs=1e-4)
        assert before["best_test_accuracy"] is None and before["best_test_baseline_accuracy"] is None
        assert student["accuracy"] == before["accuracy"]
    best = max(test["accuracy"][0] for test in second_alone)
    assert summary["students"][1]["best_test_baseline_accuracy"] == pytest.approx(best, abs=1e-4)
    assert summary["best_test_ensemble_accuracy"] == pytest.approx(
        max(test["ensemble_accuracy"] for test in family), abs=1e-4
    )
    assert plain["best_test_ensemble_accuracy"] is None


def test_a_best_test_epoch_needs_every_epoch(config):
    train(replace(config, epochs=1), QUIET)
    summary = train(replace(config, epochs=1, resume=True, track_test=True), QUIET)
    assert summary["students"][0]["best_test_accuracy"] is None


def test_the_same_seed_gives_the_same_run(config, tmp_path):
    train(config, QUIET)
    train(replace(config, output_dir=tmp_path / "again"), QUIET)
    assert_same_run(config.output_dir, tmp_path / "again")


@pytest.mark.parametrize("step", [2, 3, 5, 11, 18])
def test_stopped_and_resumed_is_the_same_run(config, tmp_path, monkeypatch, step):
    """In the middle of an epoch, at its end, and in a baseline (steps 10 to 18 and on)."""
    config = replace(config, baseline=True)
    train(config, QUIET)
    again = replace(config, output_dir=tmp_path / "again")
    with monkeypatch.context() as patch:
        at_step(patch, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted, match="--resume continues") as stopped:
            train(again, QUIET)
        assert stopped.value.signal_number == signal.SIGTERM
    train(replace(again, resume=True), QUIET)
    assert_same_run(config.output_dir, again.output_dir)


def test_killed_and_resumed_is_the_same_run(config, tmp_path):
    train(config, QUIET)
    again = replace(config, output_dir=tmp_path / "again")
    script = (
        "import os, signal, sys\n"
        "from oekd_fast.training.engine import Engine\n"
        "import oekd_fast.train as t\n"
        "step, done = Engine.step, []\n"
        "def patched(self):\n"
        "    done.append(1)\n"
        "    if len(done) == 8: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self)\n"
        "Engine.step = patched\n"
        "sys.exit(t.main())\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, *command_line(again)], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(metrics_without_times(again.output_dir)) == 2
    train(replace(again, resume=True), QUIET)
    assert_same_run(config.output_dir, again.output_dir)


def test_resume_survives_a_damaged_latest_checkpoint(config, tmp_path, monkeypatch):
    train(config, QUIET)
    again = replace(config, output_dir=tmp_path / "again")
    with monkeypatch.context() as patch:
        at_step(patch, 8, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            train(again, QUIET)
    latest = load_latest_checkpoint(again.output_dir / "checkpoints" / "ensemble").path
    content = bytearray(latest.read_bytes())
    content[len(content) // 2] ^= 1
    latest.write_bytes(content)
    with pytest.warns(UserWarning, match=f"skipped a damaged checkpoint, {latest}"):
        train(replace(again, resume=True), QUIET)
    assert_same_run(config.output_dir, again.output_dir)


def test_resuming_a_finished_run_changes_nothing(config):
    train(config, QUIET)
    before = metrics_without_times(config.output_dir), results_without_times(config.output_dir)
    train(replace(config, resume=True), QUIET)
    assert (metrics_without_times(config.output_dir), results_without_times(config.output_dir)) == before


def test_baselines_can_be_added_to_a_finished_run(config):
    train(config, QUIET)
    summary = train(replace(config, resume=True, baseline=True), QUIET)
    assert all(student["baseline_accuracy"] is not None for student in summary["students"])


def test_resume_starts_where_there_is_nothing(config):
    train(replace(config, resume=True, epochs=1), QUIET)
    assert (config.output_dir / "summary.json").exists()


def test_a_folder_that_holds_a_run_is_not_overwritten(config):
    train(replace(config, epochs=1), QUIET)
    before = (config.output_dir / "summary.json").read_bytes()
    with pytest.raises(RunFolderError, match=r"output_dir: .*run already holds a run; --resume continues it"):
        train(replace(config, seed=1), QUIET)
    assert (config.output_dir / "summary.json").read_bytes() == before


def test_a_resumed_config_must_match(config):
    train(replace(config, epochs=1), QUIET)
    before = (config.output_dir / "config.json").read_bytes()
    changed = replace(config, epochs=1, resume=True, temperature=3.0, seed=1)
    with pytest.raises(RunFolderError, match="seed: expected 0, got 1; temperature: expected 2.0, got 3.0"):
        train(changed, QUIET)
    assert (config.output_dir / "config.json").read_bytes() == before


def test_a_run_from_before_a_field_existed_is_resumed(config):
    train(replace(config, epochs=1), QUIET)
    file = config.output_dir / "config.json"
    fields = json.loads(file.read_text())
    for name in ("train_images", "augmentation", "image_size", "normalisation", "skip_corrupt", "ce_schedule"):
        del fields[name]
    file.write_text(json.dumps(fields))
    train(replace(config, epochs=1, resume=True), QUIET)
    file.write_text(json.dumps(fields))
    with pytest.raises(RunFolderError, match="train_images: expected None, got 60"):
        train(replace(config, epochs=1, resume=True, train_images=60), QUIET)
    with pytest.raises(RunFolderError, match="ce_schedule: expected 'constant', got 'linear'"):
        train(replace(config, epochs=1, resume=True, ce_schedule="linear"), QUIET)


def test_a_checkpoint_of_another_config_is_refused(config):
    train(replace(config, epochs=1), QUIET)
    (config.output_dir / "config.json").unlink()
    before = (config.output_dir / "metrics.jsonl").read_bytes()
    with pytest.raises(RunFolderError, match=r"does not match .*step-0000000003.pt; epochs: expected 1, got 3"):
        train(replace(config, resume=True), QUIET)
    assert not (config.output_dir / "config.json").exists()
    assert (config.output_dir / "metrics.jsonl").read_bytes() == before


def test_divergence_names_the_step_and_keeps_the_last_good_checkpoint(config, monkeypatch):
    def poison():
        with torch.no_grad():
            engines[0].ensemble.base[0].weight.fill_(float("nan"))

    engines = []
    initialise = Engine.__init__
    monkeypatch.setattr(Engine, "__init__", lambda self, *a, **k: (engines.append(self), initialise(self, *a, **k))[1])
    at_step(monkeypatch, 5, poison)
    with pytest.raises(TrainingDiverged, match=r"ensemble: the loss is not finite since step 5 \(epoch 2\)"):
        train(config, QUIET)
    kept = load_latest_checkpoint(config.output_dir / "checkpoints" / "ensemble")
    assert kept.step == 3
    assert all(torch.isfinite(value).all() for value in kept.state["engine"]["model"].values())


def test_a_label_out_of_range_is_reported_where_the_metrics_are_read(config, monkeypatch):
    # As on a GPU, where nobody waits to look at a label: the cross-entropies of its batch are NaN.
    def poison():
        logits = [torch.zeros(2, 10) for _ in range(config.num_students)]
        output = reference.ensemble_kd(logits, torch.tensor([0, 99]), KDOptions())
        engines[0].metrics.update(output, 2, None, output.loss)

    engines = []
    initialise = Engine.__init__
    monkeypatch.setattr(Engine, "__init__", lambda self, *a, **k: (engines.append(self), initialise(self, *a, **k))[1])
    at_step(monkeypatch, 5, poison)
    with pytest.raises(TrainingDiverged, match="Labels are out of range: expected classes 0 to 2"):
        train(config, QUIET)


def test_one_image_is_no_batch(config):
    with pytest.raises(ValueError, match="batch_size: training needs batches of at least 2 images, got 1"):
        train(replace(config, batch_size=1), QUIET)
    assert not config.output_dir.exists()


def test_an_unknown_device_is_named(config):
    with pytest.raises(ValueError, match="device: 'cuda:99' cannot be used here"):
        train(replace(config, device="cuda:99"), QUIET)


def command_line(config: TrainConfig) -> list[str]:
    arguments = []
    for name, value in config.as_dict().items():
        if value == TrainConfig().as_dict()[name]:
            continue
        flag = f"--{name.replace('_', '-')}"
        arguments += [
            f"--no-{flag[2:]}" if value is False else flag,
            *([] if isinstance(value, bool) else [str(value)]),
        ]
    return arguments


def run_command(*arguments, folder):
    return subprocess.run(
        [sys.executable, "-m", "oekd_fast.train", *map(str, arguments)],
        cwd=folder, capture_output=True, text=True, env={**os.environ, "COLUMNS": "100"},
    )  # fmt: skip


def test_command_line_prints_the_table_and_the_folder(arrays, tmp_path):
    done = run_command("--dataset", arrays, "--epochs", 1, "--num-students", 2, "--output-dir", "out", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for text in ("student", "parameters", "size %", "baseline %", "accuracy %", "gain %", "Run folder: out"):
        assert text in done.stdout
    assert (tmp_path / "out" / "summary.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "resnet21"], "error: model: 'resnet21' is unknown; did you mean resnet32 or resnet20"),
        (["--dataset", "cifar1000"], "cifar100"),
        (["--temperature", "-1"], "temperature: expected a finite number > 0, got -1.0"),
    ],
)
def test_command_line_errors_are_one_clear_line(arguments, message, tmp_path):
    failed = run_command(*arguments, folder=tmp_path)
    assert failed.returncode != 0
    assert message in failed.stderr and "Traceback" not in failed.stderr
    assert not (tmp_path / "runs").exists()


def test_ctrl_c_on_the_command_line_saves_and_says_so(arrays, tmp_path):
    command = [sys.executable, "-m", "oekd_fast.train", "--dataset", str(arrays), "--epochs", "1000",
               "--num-students", "2", "--output-dir", "out", "--batch-size", "20"]  # fmt: skip
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "out" / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        assert process.poll() is None, process.stderr.read()
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, errors
    assert "--resume continues" in output and "Traceback" not in errors
    assert load_latest_checkpoint(tmp_path / "out" / "checkpoints" / "ensemble") is not None
