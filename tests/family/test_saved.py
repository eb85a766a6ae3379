import copy
import dataclasses
import json
import sys

import pytest
import safetensors
import torch

import oekd_fast
from oekd_fast.family import saved as saved_students
from oekd_fast.family.gate import Gate
from oekd_fast.family.saved import GATE_FILE, load_gate, load_student, save_gate, save_student
from oekd_fast.family.teacher_sources import load_source

from .student_files import CLASSES, describe, edit


@pytest.fixture
def images():
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("j", range(5))
@pytest.mark.parametrize("suffix", ["", ".safetensors", ".json"])
def test_a_loaded_student_computes_the_same_logits(tmp_path, trained, images, j, suffix):
    metadata = describe(trained, j)
    save_student(trained.student(j), tmp_path / f"student_{j + 1}.safetensors", metadata)
    student = load_student(tmp_path / f"student_{j + 1}{suffix}")

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"student_{j + 1}.json",
        f"student_{j + 1}.safetensors",
    ]
    assert not any(module.training for module in student.modules())
    assert torch.equal(student(images), trained.student(j)(images))
    assert student.metadata == metadata


def test_saving_a_student_again_writes_the_same_bytes(tmp_path, trained):
    contents = set()
    for attempt in range(6):  # the library writes the metadata of a header in an order that changes from call to call
        path = save_student(trained.student(4), tmp_path / str(attempt), describe(trained, 4))
        contents.add((path.read_bytes(), path.with_suffix(".json").read_bytes()))
        with safetensors.safe_open(path, "pt") as file:
            assert file.metadata()["format"] == "pt"
    assert len(contents) == 1


def test_contents_of_the_json_file(saved):
    document = json.loads(saved.with_suffix(".json").read_text())
    assert len(document.pop("weights_sha256")) == 64
    assert list(document)[0] == "format_version"
    assert document == {
        "format_version": 1,
        "model": "resnet20",
        "num_students": 5,
        "index": 4,
        "in_channels": 3,
        "image_size": 8,
        "num_classes": 7,
        "classes": list(CLASSES),
        "widths": [6, 12, 25],
        "parameters": 42_231 - 3 * 26,
        "accuracy": 81.25,
        "normalisation": {"mean": [0.5, 0.25, 0.4], "std": [0.2, 0.5, 0.25]},
        "oekd_fast_version": oekd_fast.__version__,
    }


def test_the_file_has_the_tensors_of_the_student_only(saved, trained):
    state = load_student(saved).state_dict()
    assert state.keys() == trained.student(3).state_dict().keys()


def test_preprocess_normalises_each_channel(saved):
    images = torch.zeros(2, 3, 2, 2, dtype=torch.uint8)
    images[1] = 255
    scaled = load_student(saved).preprocess(images)
    assert scaled.dtype == torch.float32 and scaled.shape == images.shape
    torch.testing.assert_close(scaled[0, :, 0, 0], torch.tensor([-2.5, -0.5, -1.6]))
    torch.testing.assert_close(scaled[1, :, 1, 1], torch.tensor([2.5, 1.5, 2.4]))


def test_preprocess_rejects_other_images(saved):
    student = load_student(saved)
    with pytest.raises(TypeError, match=r"images: expected torch.uint8, got torch.float32"):
        student.preprocess(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"images: expected the shape \[B, 3, H, W\], got \[1, 1, 8, 8\]"):
        student.preprocess(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))


def test_loading_draws_no_random_numbers(saved):
    before = torch.get_rng_state()
    load_student(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loaded_student_can_be_copied_saved_again_and_trained(tmp_path, saved, images):
    student = load_student(saved)
    again = save_student(copy.deepcopy(student), tmp_path / "again", student.metadata)
    assert torch.equal(load_student(again)(images), student(images))
    student.train()(images).sum().backward()
    assert all(p.grad is not None for p in student.parameters())


def test_channels_last_weights_can_be_saved(tmp_path, trained, images):
    student = copy.deepcopy(trained.student(1)).to(memory_format=torch.channels_last)
    loaded = load_student(save_student(student, tmp_path / "s", describe(trained, 1)))
    assert all(map(torch.equal, loaded.parameters(), student.parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("base.0.weight", float("nan")),
        ("branch.stages.1.0.norm1.running_mean", float("inf")),
        ("branch.classifier.bias", -float("inf")),
    ],
)
def test_a_student_that_is_not_finite_is_neither_saved_nor_loaded(tmp_path, trained, monkeypatch, value, name, dtype):
    student, path = copy.deepcopy(trained.student(3)).to(dtype), tmp_path / "student_4.safetensors"
    tensors = student.state_dict()
    assert name in tensors, list(tensors)
    tensors[name].view(-1)[-1] = value
    message = f"expected finite weights, got NaN or infinity in {name}"
    with pytest.raises(ValueError, match=f"^module: {message}$"):
        save_student(student, path, describe(trained, 3))
    assert list(tmp_path.iterdir()) == []
    with monkeypatch.context() as patch:
        patch.setattr(saved_students, "not_finite", lambda tensors: None)
        save_student(student, path, describe(trained, 3))
    for load in (load_student, lambda path: load_source(path, torch.device("cpu"))):
        with pytest.raises(ValueError, match=f"^{path}: {message}$"):
            load(path)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_missing_file_is_named(saved, suffix):
    saved.with_suffix(suffix).unlink()
    with pytest.raises(FileNotFoundError, match=rf"path: a student needs .*student_4\{suffix}, which is missing"):
        load_student(saved)


@pytest.mark.parametrize("version", [0, 3, None])
def test_another_format_version_is_rejected(saved, version):
    edit(saved.with_suffix(".json"), format_version=version)
    with pytest.raises(ValueError, match=rf"student_4\.json: expected format_version 1 or 2, got {version}"):
        load_student(saved)


@pytest.mark.parametrize("position", [3, 500, -1])
def test_damaged_weights_are_rejected(saved, position):
    data = bytearray(saved.read_bytes())
    data[position] ^= 1
    saved.write_bytes(data)
    with pytest.raises(ValueError, match=r"student_4\.safetensors: damaged, or not saved together with"):
        load_student(saved)


def test_truncated_weights_are_rejected(saved):
    saved.write_bytes(saved.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"student_4\.safetensors: damaged"):
        load_student(saved)


def test_weights_of_another_save_are_rejected(saved, trained):
    other = save_student(trained.student(2), saved.with_name("student_3"), describe(trained, 2))
    saved.write_bytes(other.read_bytes())
    with pytest.raises(ValueError, match=r"not saved together with student_4\.json"):
        load_student(saved)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not valid JSON"), ("[]", "expected a JSON object, got list"), ("\udcff", "not valid JSON")],
)
def test_a_damaged_json_is_rejected(saved, text, message):
    saved.with_suffix(".json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=rf"student_4\.json: {message}"):
        load_student(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ..., "extra": 1}, "fields are not those of format 1; missing: model; unexpected: extra"),
        ({"index": 6}, r"index: expected a number in 1\.\.5, got 6"),
        ({"index": "4"}, "index: expected an integer >= 1, got '4'"),
        ({"classes": ["a"]}, "classes: expected 7 entries, got 1"),
        (
            {"normalisation": {"mean": [0.5], "std": [1.0] * 3}},
            "normalisation.mean: expected 3 entries, got 1",
        ),
        ({"normalisation": {"mean": [0.5] * 3, "std": [1, 1, 0]}}, "normalisation.std: expected numbers > 0"),
        ({"normalisation": {"mean": [0.5] * 3}}, "std"),
    ],
)
def test_inconsistent_metadata_is_rejected(saved, changes, message):
    edit(saved.with_suffix(".json"), **changes)
    with pytest.raises(ValueError, match=rf"student_4\.json: .*{message}"):
        load_student(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "resnet32"}, "parameters: expected 71477, as resnet32 has, got 42153"),
        (
            {"model": "resnet32", "parameters": 71477},
            r"missing: branch\.stages\.0\.3\..* and \d+ more; unexpected: none",
        ),
        ({"index": 1}, r"widths: expected \[16, 32, 64\], as resnet20 has, got \[6, 12, 25\]"),
        (
            {"index": 1, "widths": (16, 32, 64), "parameters": 272279},
            r"missing: none; unexpected: branch\.stages\.0\.0\.shortcut\.conv\.weight",
        ),
        (
            {"index": 5, "widths": (3, 6, 12), "parameters": 10734},
            r"expected branch\.stages\.0\.0\.conv1\.weight of shape \[3, 16, 3, 3\], got \[6, 16, 3, 3\]",
        ),
        ({"model": "resnet21"}, "model: 'resnet21' is unknown"),
    ],
)
def test_weights_of_another_model_are_rejected(saved, trained, changes, message):
    edit(saved.with_suffix(".json"), **changes)
    with pytest.raises(ValueError, match=message):
        load_student(saved)
    with pytest.raises(ValueError, match=message):
        save_student(trained.student(3), saved, dataclasses.replace(describe(trained, 3), **changes))


def test_a_failed_save_keeps_the_old_student(saved, trained, images, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    expected = load_student(saved)(images)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_student(trained.student(3), saved, describe(trained, 3, accuracy=0.0))
    assert torch.equal(load_student(saved)(images), expected)
    assert len(list(saved.parent.iterdir())) == 2


def test_missing_safetensors_raises_a_one_line_error(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(
        ImportError, match=r"^students need the package safetensors: pip install 'oekd_fast\[students\]'$"
    ):
        load_student(saved)


# Gate


@pytest.fixture
def gate():
    torch.manual_seed(0)
    gate = Gate(16, 3)
    gate(torch.randn(8, 16, 4, 4) * 2 + 1)  # gives BatchNorm statistics other than the initial ones
    return gate.eval()


@pytest.fixture
def saved_gate(tmp_path, gate):
    save_gate(gate, tmp_path / GATE_FILE)
    return tmp_path / GATE_FILE


def test_a_loaded_gate_computes_the_same_weights(saved_gate, gate):
    before = torch.get_rng_state()
    loaded, maps = load_gate(saved_gate, 16, 3), torch.ones(2, 16, 4, 4)
    assert torch.equal(torch.get_rng_state(), before)
    assert not loaded.training and torch.equal(loaded(maps), gate(maps))
    assert [path.name for path in saved_gate.parent.iterdir()] == ["gate.safetensors"]


@pytest.mark.parametrize("damage", [lambda data: data[:-4], lambda data: data[:100], lambda data: b"",
                                    lambda data: data[:-1] + bytes([data[-1] ^ 1])])  # fmt: skip
def test_a_damaged_gate_is_rejected(saved_gate, damage):
    saved_gate.write_bytes(damage(saved_gate.read_bytes()))
    with pytest.raises(ValueError, match=r"gate\.safetensors: damaged"):
        load_gate(saved_gate, 16, 3)


def test_a_gate_with_a_missing_tensor_or_other_sizes_is_rejected(saved_gate, gate):
    for channels, students in ((16, 4), (8, 3)):
        message = rf"gate\.safetensors: expected linear.weight of shape \[{students}, {channels}\], got \[3, 16\]"
        with pytest.raises(ValueError, match=message):
            load_gate(saved_gate, channels, students)
    del gate.norm
    save_gate(gate, saved_gate)
    message = r"gate\.safetensors: the tensors are not those of the model; missing: norm.bias, .* and 2 more"
    with pytest.raises(ValueError, match=message):
        load_gate(saved_gate, 16, 3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_gate_that_is_not_finite_is_neither_saved_nor_loaded(saved_gate, gate, value, monkeypatch):
    gate.norm.running_var[1] = value
    message = "expected finite weights, got NaN or infinity in norm.running_var"
    with pytest.raises(ValueError, match=f"^gate: {message}$"):
        save_gate(gate, saved_gate)
    with monkeypatch.context() as patch:
        patch.setattr(saved_students, "not_finite", lambda tensors: None)
        save_gate(gate, saved_gate)
    with pytest.raises(ValueError, match=f"^{saved_gate}: {message}$"):
        load_gate(saved_gate, 16, 3)


def test_a_failed_save_keeps_the_old_gate(saved_gate, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    before = saved_gate.read_bytes()
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_gate(Gate(16, 3), saved_gate)
    assert saved_gate.read_bytes() == before and len(list(saved_gate.parent.iterdir())) == 1


def test_the_package_exports_load_student():
    assert oekd_fast.load_student is load_student
