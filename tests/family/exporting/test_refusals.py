"""What export refuses, in one line, without touching the file that is there."""

import sys

import pytest
import torch
from torch import nn

from oekd_fast import FunctionalArchitecture, build_ensemble
from oekd_fast.family.exporting import onnx_format, program_format
from oekd_fast.family.exporting.export import ExportError
from oekd_fast.family.saved import Normalisation

from .files import ARCHITECTURE, CLASSES, NORMALISATION, SHAPE, trained_family

OPTIONS = {"image_shape": SHAPE, "normalisation": NORMALISATION}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def student():
    return trained_family().student(1)


def refused(kind, student, path, **options) -> str:
    """Return the message of the error, after checking that it is one line and that `path` still is what it was."""
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(kind) as raised:
        student.export(path, **{**OPTIONS, **options})
    message = str(raised.value)
    assert "\n" not in message
    assert (path.read_bytes() if path.is_file() else None) == before
    if path.parent.is_dir():
        assert not list(path.parent.glob("*.tmp"))
    return message


@pytest.mark.parametrize("name", ["a.pth", "a", "a.ONNX", ".onnx"])
def test_other_suffixes(student, tmp_path, name):
    message = refused(ValueError, student, tmp_path / name)
    assert message == f"path: expected a name that ends in .onnx or .pt2, got {name!r}"


def test_a_folder_that_is_missing_is_named(student, tmp_path):
    assert str(tmp_path / "nowhere") in refused(FileNotFoundError, student, tmp_path / "nowhere" / "a.onnx")


def test_a_folder_in_place_of_the_file(student, tmp_path):
    (tmp_path / "a.pt2").mkdir()
    assert "Is a directory" in refused(IsADirectoryError, student, tmp_path / "a.pt2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch: expected an integer >= 1, or None for any number of images, got 0"),
        ({"batch": 2.0}, "batch: expected an integer >= 1, or None for any number of images, got 2.0"),
        ({"batch": True}, "batch: expected an integer >= 1, or None for any number of images, got True"),
        ({"image_shape": None}, "image_shape: expected (C, H, W) of the images, got None"),
        ({"image_shape": (8, 8)}, "image_shape: expected (C, H, W) with three integers >= 1, got (8, 8)"),
        ({"image_shape": (3, 0, 8)}, "image_shape: expected (C, H, W) with three integers >= 1, got (3, 0, 8)"),
        (
            {"normalisation": None},
            "normalisation: expected mean and std of the images, got None; preprocessing=False exports a network of "
            "images that are normalised",
        ),
        (
            {"normalisation": Normalisation((0.5,), (0.5,))},
            "normalisation.mean: expected 3 finite numbers, one per channel, got (0.5,)",
        ),
        ({"classes": CLASSES[:3]}, "classes: expected 4 names, as many as logits, got 3"),
    ],
)
def test_arguments_out_of_range(student, tmp_path, options, message):
    assert refused(ValueError, student, tmp_path / "a.pt2", **options) == message


def test_images_that_the_network_does_not_take(student, tmp_path):
    statistics = Normalisation((0.5,) * 2, (0.5,) * 2)
    message = refused(ExportError, student, tmp_path / "a.pt2", image_shape=(2, 8, 8), normalisation=statistics)
    assert message.startswith("network: does not take images [2, 2, 8, 8] (RuntimeError: ")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(student, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    message = refused(ImportError, student, tmp_path / "a.onnx")
    assert message.startswith(f"ONNX files need the package {package}")
    assert message.endswith(": pip install 'oekd_fast[export]'")
    student.export(tmp_path / "a.pt2", **OPTIONS)  # needs none of them


def test_weights_that_are_not_in_memory_or_not_finite(tmp_path):
    with torch.device("meta"):
        student = build_ensemble(ARCHITECTURE, 2).student(0)
    assert refused(ValueError, student, tmp_path / "a.pt2") == (
        "network: expected weights in memory, got base.0.weight on the meta device"
    )
    student = trained_family().student(0)
    student.branch.classifier.weight.data[1, 2] = float("nan")
    assert refused(ValueError, student, tmp_path / "a.pt2") == (
        "network: expected finite weights, got NaN or infinity in branch.classifier.weight"
    )


def test_weights_too_large_for_one_file(student, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_format, "LARGEST", 1000)
    message = refused(ValueError, student, tmp_path / "a.onnx")
    assert message == (
        "network: expected at most 1,000 bytes of weights for one .onnx file, got 5,724; .pt2 files may be larger"
    )


def test_a_network_whose_logits_overflow(tmp_path):
    student = trained_family().student(0)
    student.branch.classifier.weight.data.fill_(3e38)
    assert "expected finite logits for random images" in refused(ExportError, student, tmp_path / "a.pt2")


@pytest.mark.parametrize(("error", "reported"), [(1e-3, "1.0e-03"), (float("nan"), "inf")])
def test_a_file_that_computes_something_else_is_not_written(student, tmp_path, monkeypatch, error, reported):
    load = program_format.load

    def disturbed(content):
        run = load(content)

        def run_disturbed(images):
            (logits,) = run(images)
            logits[-1, 0] += error * logits.abs().max()
            return [logits]

        return run_disturbed

    monkeypatch.setattr(program_format, "load", disturbed)
    (tmp_path / "a.pt2").write_bytes(b"what was there before")
    message = refused(ExportError, student, tmp_path / "a.pt2")
    assert message.startswith("a.pt2: expected the logits of the network to within ")
    assert f"got a difference of {reported}" in message


def test_a_runtime_that_fails(student, tmp_path, monkeypatch):
    def failing(content):
        def run(images):
            if len(images) == 1:
                raise RuntimeError("one image is too few\nat line 3")
            return [torch.zeros(len(images), len(CLASSES))]

        return run

    monkeypatch.setattr(program_format, "load", failing)
    message = refused(ExportError, student, tmp_path / "a.pt2")
    assert message == "a.pt2: does not run for 1 images (RuntimeError: one image is too few)"


class FixedBatch(nn.Module):
    """A block whose output is right for two images alone."""

    def forward(self, x):
        return x.reshape(2, 8, -1).reshape(x.shape) if len(x) == 2 else x * 2


def test_a_network_for_one_number_of_images_is_refused_for_any(tmp_path):
    architecture = FunctionalArchitecture(
        "fixed", lambda channels: nn.Conv2d(channels, 8, 3), lambda width: [FixedBatch()], nn.Linear
    )
    student = build_ensemble(architecture, 1, num_classes=4).student(0)
    message = refused(ExportError, student, tmp_path / "a.pt2")
    assert message.startswith("network: cannot be traced by torch.export (")
    assert message.endswith("; for one number of images it may work: batch=1")
    student.export(tmp_path / "a.pt2", batch=2, **OPTIONS)
