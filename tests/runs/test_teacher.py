"""The external teacher of a run: saved students, programs of torch.export, modules from Python; what does not fit."""

import json
import os
import signal
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.family.saved import Normalisation, StudentMetadata, save_student
from oekd_fast.family.teacher_sources import load_source
from oekd_fast.runs.checkpoint import load_latest_checkpoint
from oekd_fast.runs.device_data import DeviceData, dataset_of
from oekd_fast.runs.external_teacher import load_teacher, teacher_notes
from oekd_fast.runs.interrupt import Interrupted
from oekd_fast.runs.run import train
from oekd_fast.runs.run_folder import RunFolderError

from ..support.small_runs import QUIET, assert_same_run, at_step

CPU = torch.device("cpu")
MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        torch.manual_seed(5)
        self.conv, self.norm, self.drop = nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.Dropout(0.5)
        self.head = nn.Linear(6, classes)

    def forward(self, images):
        return self.head(self.drop(self.norm(self.conv(images)).relu().mean((2, 3))))

class Output:
    def __init__(self, logits):
        self.logits = logits

class Wrapped(Net):
    def __init__(self, returns):
        super().__init__()
        self.returns = returns

    def forward(self, images):
        return self.returns(super().forward(images), images)

def net():
    return Net()

def like_timm():
    network = Net()
    network.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "input_size": (3, 12, 12)}
    return network

def half():
    return Net().to(torch.bfloat16)

def of_transformers():
    return Wrapped(lambda logits, images: Output(logits))

def one_map():  # of the height and width of that of the smallest network
    return Wrapped(lambda logits, images: (logits, [images[..., ::4, ::4]]))

def shallow():
    return Wrapped(lambda logits, images: (logits, [images]))

def small():
    return Wrapped(lambda logits, images: (logits, [images[..., ::4, ::4]] * 3))

def wide(): return Net(10)
def flat(): return Wrapped(lambda logits, images: logits.flatten())
def bad(): return Wrapped(lambda logits, images: logits / 0)
def pairs(): return Wrapped(lambda logits, images: (logits, "maps"))
def needs(argument): return Net()
def broken(): raise RuntimeError("no weights\\nhere")
def text(): return "a network"
number = 3
ready = Net()
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("teachers") / "nets.py"
    file.write_text(textwrap.dedent(MODULE))
    return file


@pytest.fixture(scope="module")
def students(tmp_path_factory) -> Path:
    """An untrained student for three classes of colour images, with maps of three blocks."""
    torch.manual_seed(0)
    family = build_ensemble("resnet20", 1, 3)
    metadata = StudentMetadata.of(
        family, 0, image_size=8, classes="abc", normalisation=Normalisation((0.5,) * 3, (0.2,) * 3)
    )
    return save_student(family.student(0), tmp_path_factory.mktemp("saved") / "teacher", metadata)


def network(module: Path, name: str = "net") -> nn.Module:
    return load_source(Path(f"{module}:{name}"), CPU).network.eval()


def export(net: nn.Module, file: Path, shape=(2, 3, 8, 8), dynamic=(0,)) -> Path:
    shapes = ({axis: torch.export.Dim.AUTO for axis in dynamic},)
    torch.export.save(torch.export.export(net, (torch.randn(shape),), dynamic_shapes=shapes), file)
    return file


def teach(config: TrainConfig, teacher: Path | str, **fields):
    """Return the teacher of a run of `config`, and the training images as it gets them, uint8 [N, 3, 8, 8]."""
    config = replace(config, **{"objective": "kd", "teacher": Path(teacher), **fields})
    dataset = dataset_of(config)
    return load_teacher(config, dataset, DeviceData.of(dataset, config, CPU), CPU), dataset.train.images


def normalised(images, mean, std):
    return (images / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def test_a_module_gets_its_own_normalisation_and_size(config, module):
    """Those of the options come first, then those of timm's attribute, then those of the data set."""
    teacher, images = teach(config, f"{module}:like_timm")
    resized = F.interpolate(
        normalised(images, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)), (12, 12), mode="bilinear", antialias=True
    )
    logits, maps = teacher(images, torch.channels_last)
    torch.testing.assert_close(logits, network(module)(resized))
    assert maps == () and not logits.requires_grad and not teacher.network.training

    teacher, _ = teach(
        config, f"{module}:like_timm", teacher_mean=(0.0,) * 3, teacher_std=[1.0] * 3, teacher_image_size=8
    )
    torch.testing.assert_close(teacher(images, torch.channels_last)[0], network(module)(images / 255))

    teacher, _ = teach(config, f"{module}:net")
    own = dataset_of(config).normalisation()
    torch.testing.assert_close(teacher(images, torch.channels_last)[0], network(module)(normalised(images, *own)))


def test_notes_say_how_images_are_prepared(config, module, students):
    def note(name, **fields):
        teacher, _ = teach(config, name, **fields)
        return teacher_notes(teacher, replace(config, objective="kd", teacher=Path("x"), **fields))

    prefix = "Teacher x: 201 parameters; images normalised by "
    assert note(f"{module}:like_timm") == [f"{prefix}its own mean and deviation, resized to 12 x 12 pixels"]
    assert note(f"{module}:net", teacher_std=(1.0,) * 3) == [f"{prefix}mean of the data set, kept at their size"]
    assert note(students) == []


@pytest.mark.parametrize("name", ["of_transformers", "half", "ready"])
def test_outputs_and_dtypes_of_other_packages(config, module, name):
    teacher, images = teach(config, f"{module}:{name}")
    expected = teach(config, f"{module}:net")[0](images, torch.channels_last)[0]
    tolerance = 2e-2 if name == "half" else 0.0
    torch.testing.assert_close(teacher(images, torch.channels_last)[0].float(), expected, atol=tolerance, rtol=0.0)


def test_a_module_of_a_package_is_imported_by_name(config, module, monkeypatch):
    monkeypatch.syspath_prepend(module.parent)
    teacher, images = teach(config, "nets:net")
    torch.testing.assert_close(
        teacher(images, torch.channels_last), teach(config, f"{module}:net")[0](images, torch.channels_last)
    )


@pytest.mark.slow
def test_a_program_computes_as_the_network_and_tells_its_size(config, module, tmp_path):
    net = network(module)
    fixed = export(net, tmp_path / "fixed.pt2", (2, 3, 12, 12))
    teacher, images = teach(config, fixed, teacher_mean=(0.0,) * 3, teacher_std=(1.0,) * 3)
    assert teacher.fingerprint["image_size"] == 12
    resized = F.interpolate(images / 255, (12, 12), mode="bilinear", antialias=True)
    for rows in (1, 7):
        torch.testing.assert_close(teacher(images[:rows], torch.channels_last)[0], net(resized[:rows]))
    refuse(config, f"^teacher: {fixed} does not take images .*Guard failed", teacher=fixed, teacher_image_size=9)

    free = export(net, tmp_path / "free.pt2", dynamic=(0, 2, 3))
    teacher, _ = teach(config, free)
    assert teacher.fingerprint["image_size"] is None
    assert teacher.train().network.program is not None  # a program keeps its mode


def test_programs_that_cannot_teach_raise_in_one_line(config, module, tmp_path):
    file = export(network(module).train(), tmp_path / "training.pt2")
    message = (
        f"{file}: expected a program that was exported in evaluation mode, got aten.batch_norm.default in training"
    )
    refuse(config, message, teacher=file)
    file = export(network(module), tmp_path / "one.pt2", dynamic=())
    refuse(config, f"{file}: expected a program for any number of images, got one for 2; export it with", teacher=file)
    file = export(network(module), tmp_path / "wide.pt2", (2, 3, 8, 12))
    refuse(config, f"{file}: expected a program of square images, got 8 x 12", teacher=file)
    file = export(nn.Linear(3, 3), tmp_path / "flat.pt2", (2, 3))
    refuse(config, rf"{file}: expected a program of images \[B, C, H, W\], got 2 dimensions", teacher=file)
    file = tmp_path / "pixels.pt2"
    pixels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    shapes = ({0: torch.export.Dim.AUTO},)
    torch.export.save(torch.export.export(TakesPixels(), (pixels,), dynamic_shapes=shapes), file)
    refuse(config, f"{file}: expected a program of normalised images in a floating-point type, got torch.uint8; expor",
           teacher=file)  # fmt: skip
    file = tmp_path / "text.pt2"
    file.write_text("no program")
    refuse(config, f"^teacher: {file}: expected a file that torch.export.save wrote$", teacher=file)
    file.unlink()
    refuse(config, f"^teacher: {file} is missing$", FileNotFoundError, teacher=file)


class TakesPixels(nn.Module):
    def forward(self, images):
        return images.float().mean((2, 3))


def refuse(config: TrainConfig, message: str, error: type[Exception] = ValueError, **fields) -> None:
    """Check that the error comes in one line before any phase, although pre-training does not need the teacher."""
    with pytest.raises(error, match=message) as caught:
        train(replace(config, **{"objective": "kd", "pretrain_epochs": 1, **fields}), QUIET)
    assert "\n" not in str(caught.value) and not config.output_dir.exists()


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("wide", {}, r"^teacher: expected 3 classes, as the data set has, got 10 in \S+nets.py:wide$"),
        ("flat", {}, r"^teacher: expected logits of shape \[20, 3\], got \[60\] from"),
        ("bad", {}, "^teacher: expected finite floating-point logits, got NaN or infinity from"),
        ("pairs", {}, r"^teacher: .* does not take images \[20, 3, 8, 8\] .* \(TypeError: expected logits, an output"),
        ("needs", {}, r"needs\(\) raised TypeError: needs\(\) missing 1 required positional argument: 'argument'$"),
        ("broken", {}, r"broken\(\) raised RuntimeError: no weights$"),
        ("nothing", {}, "^teacher: expected a function or a module called 'nothing' in .*nets.py, got none$"),
        ("like_timm", {"dataset": "digits"}, "^teacher_mean: expected 1 numbers, one for each channel .* got 3$"),
        ("net", {"teacher_mean": (0.5,)}, "^teacher_mean: expected 3 numbers, one for each channel .* got 1$"),
        ("net", {"objective": "fitnets"}, "^teacher: expected feature maps with objective='fitnets', which a saved"),
        ("shallow", {"objective": "fitnets"}, "^teacher: expected maps of 3 blocks, as resnet20 has, got 1 in"),
        ("small", {"objective": "fitnets"}, r"^teacher: expected a map of 8 x 8 pixels after block 0, .* 3, 2, 2\]"),
    ],
)
def test_a_module_that_does_not_fit_raises_before_training(config, module, name, fields, message):
    refuse(config, message, teacher=Path(f"{module}:{name}"), **fields)


def test_code_that_returns_no_module_raises(config, module, tmp_path):
    refuse(config, r"expected an nn.Module, got str from \S+:text\(\)$", TypeError, teacher=Path(f"{module}:text"))
    refuse(config, "expected a function or a module, got int in", TypeError, teacher=Path(f"{module}:number"))
    refuse(config, "^teacher: no_such cannot be imported .*No module named", teacher=Path("no_such:net"))
    refuse(config, "^teacher: .*none.py is missing$", FileNotFoundError, teacher=tmp_path / "none.py:net")


def test_a_student_that_does_not_fit_raises(config, students, tmp_path):
    message = f"^teacher: expected 10 classes, as the data set has, got 3 in {students}$"
    refuse(config, message, teacher=students, dataset="digits")
    copy = tmp_path / "teacher.safetensors"
    copy.with_suffix(".json").write_bytes(students.with_suffix(".json").read_bytes())
    copy.write_bytes(students.read_bytes()[:-1])
    refuse(config, "^teacher: .*teacher.safetensors: damaged", teacher=copy)
    copy.unlink()
    message = "^teacher: a student needs .*teacher.safetensors, which is missing$"
    refuse(config, message, FileNotFoundError, teacher=copy)


def test_options_of_a_teacher_need_one():
    for field, value in (("teacher_mean", (0.5,)), ("teacher_std", (0.5,)), ("teacher_image_size", 32)):
        with pytest.raises(ValueError, match=f"^{field}: expected none without a teacher, got"):
            TrainConfig(**{field: value})
    with pytest.raises(ValueError, match="^teacher_std: expected finite numbers > 0, one a channel, got"):
        TrainConfig(objective="kd", teacher="x", teacher_std=(0.5, 0.0))


def test_a_student_and_hints_of_a_module_teach_runs(smallest, students, module):
    for objective, teacher in (("kd", students), ("fitnets", f"{module}:one_map")):
        output = smallest.output_dir / f"{objective}-{Path(teacher).suffix[1:4]}"
        summary = train(replace(smallest, objective=objective, teacher=Path(teacher), output_dir=output), QUIET)
        assert len(summary["students"]) == 2
        stored = json.loads((output / "config.json").read_text())
        assert stored["teacher"] == str(teacher)
        state = load_latest_checkpoint(output / "checkpoints/ensemble").state
        assert state["teacher"]["weights"] != "" and "teacher_mean" in state["config"]


def test_a_stopped_run_resumes_with_the_same_teacher_alone(smallest, module, tmp_path, monkeypatch):
    file = tmp_path / "nets.py"
    file.write_text(module.read_text())
    config = replace(smallest, objective="kd", teacher=Path(f"{file}:like_timm"))
    whole = replace(config, output_dir=tmp_path / "whole")
    train(whole, QUIET)
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            train(config, QUIET)
    other = module.read_text().replace("manual_seed(5)", "manual_seed(6)").replace("(3, 12, 12)", "(3, 9, 9)")
    file.write_text(other)
    message = (
        "^teacher: .* differs from the teacher of .*; weights: expected .*, got .*; image_size: expected 12, got 9$"
    )
    with pytest.raises(RunFolderError, match=message):
        train(replace(config, resume=True), QUIET)
    with pytest.raises(RunFolderError, match="teacher_image_size: expected None, got 8"):
        train(replace(config, resume=True, teacher_image_size=8), QUIET)
    file.write_text(module.read_text())
    with (tmp_path / "log").open("w") as log:
        train(replace(config, resume=True), Console(file=log))
    assert "Teacher" in (tmp_path / "log").read_text()
    assert_same_run(config.output_dir, whole.output_dir)
