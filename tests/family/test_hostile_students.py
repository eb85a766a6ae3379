"""Students from a stranger: what does not describe the network is refused in one line that names file and field."""

import copy
import os

import pytest
import torch

from oekd_fast.family.saved import load_student, save_student

from .student_files import describe, edit, store, with_header

WIDE = {"normalisation": {"mean": [0.5] * 3, "std": [0.5] * 3}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 10**9}, "classes: expected 1000000000 entries, got 7"),
        ({"in_channels": 10**9}, "normalisation.mean: expected 1000000000 entries, got 3"),
        ({"image_size": 10**9}, "image_size: expected at most 4096 pixels, got 1000000000"),
        ({"image_size": 0}, "image_size: expected an integer >= 1, got 0"),
        ({"image_size": 8.0}, r"image_size: expected an integer >= 1, got 8\.0"),
        ({"num_students": True}, "num_students: expected an integer >= 1, got True"),
        ({"num_students": 10**400}, "index|widths"),
        ({"widths": [6, 12]}, r"widths: expected \[6, 12, 25\], as resnet20 has, got \[6, 12\]"),
        ({"widths": [6, 12, 10**9]}, "widths: expected .*, got .*1000000000"),
        ({"widths": 3}, "widths: expected a list, got 3"),
        ({"widths": ["6", 12, 25]}, "widths: expected an integer >= 1, got '6'"),
        ({"parameters": 1}, "parameters: expected 42153, as resnet20 has, got 1"),
        ({"classes": "abcdefg"}, "classes: expected a list, got 'abcdefg'"),
        ({"classes": [1] * 7}, "classes: expected text in each entry, got 1"),
        ({"model": ["resnet20"]}, "model: expected text, got list"),
        ({"model": "../../resnet20"}, r"model: '\.\./\.\./resnet20' is unknown"),
        ({"model": "x\n\x1b[2J" * 1000}, r"model: .* is unknown"),
        ({"accuracy": 1e300}, "accuracy: expected finite numbers, got 1e"),
        ({"accuracy": 10**400}, "accuracy: expected finite numbers, got 1000"),
        ({"accuracy": -1}, r"accuracy: expected a percentage in 0\.\.100 or null, got -1"),
        ({"normalisation": {"mean": [0.5] * 3, "std": [1e-300] * 3}}, "normalisation.std: expected numbers > 0"),
        ({"normalisation": {"mean": [1e300] * 3, "std": [1] * 3}}, "normalisation.mean: expected finite numbers"),
        (
            {"normalisation": {"mean": ["0"] * 3, "std": [1] * 3}},
            "normalisation.mean: expected finite numbers, got '0'",
        ),
        ({"normalisation": {**WIDE["normalisation"], "x": 1}}, "normalisation: .* unexpected: x"),
        ({"normalisation": [1]}, "normalisation: expected an object, got list"),
        ({"format_version": True}, "expected format_version 1 or 2, got True"),
        ({"weights_sha256": 5}, "weights_sha256: expected text, got 5"),
        ({"oekd_fast_version": None}, "oekd_fast_version: expected text, got None"),
    ],
)
def test_a_field_that_does_not_fit_is_named_in_one_line(saved, changes, message):
    edit(saved.with_suffix(".json"), **changes)
    with pytest.raises(ValueError, match=rf"student_4\.json: .*({message})") as error:
        load_student(saved)
    assert str(error.value).isprintable() and len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"accuracy": 81.25', '"accuracy": NaN', "not valid JSON .expected finite numbers, got NaN."),
        ('"accuracy": 81.25', '"accuracy": -Infinity', "not valid JSON .expected finite numbers, got -Infinity."),
        ('"accuracy": 81.25', '"accuracy": 1, "accuracy": 2', "not valid JSON .the field 'accuracy' occurs twice."),
        ('"accuracy": 81.25', '"accuracy": ' + "[" * 100_000, "not valid JSON"),
        ('"accuracy": 81.25', '"accuracy": ' + "9" * 10_000, "not valid JSON"),
    ],
)
def test_json_that_readers_take_differently_is_rejected(saved, old, new, message):
    file = saved.with_suffix(".json")
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(ValueError, match=rf"student_4\.json: {message}"):
        load_student(saved)


HOSTILE_WEIGHTS = {
    "header of gigabytes": ((2**40).to_bytes(8, "little") + b"{}", "damaged"),
    "header beyond the file": ((1000).to_bytes(8, "little") + b"{}", "damaged"),
    "no header": (b"", "damaged"),
    "nested header": (with_header(b"[" * 50_000), "damaged"),
    "overlapping": (
        with_header({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}, bytes(4)), "damaged"
    ),
    "beyond the data": (with_header({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}), "damaged"),
    "shape of no size": (
        with_header({"a": {"dtype": "F32", "shape": [2**62, 4, 0], "data_offsets": [0, 0]}}), "damaged|missing"
    ),
    "unknown dtype": (with_header({"a": {"dtype": "F99", "shape": [], "data_offsets": [0, 4]}}, bytes(4)), "damaged"),
    "other names": (
        with_header({"../../a\n": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        r"unexpected: \.\./\.\./a\\n",
    ),
    "larger than the network": (bytes(10**6), "expected at most .* bytes, got 1,000,000"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE_WEIGHTS)
def test_hostile_weights_are_rejected_in_one_line(saved, case):
    content, message = HOSTILE_WEIGHTS[case]
    store(saved, content=content)
    with pytest.raises(ValueError, match=rf"student_4\.safetensors: .*({message})") as error:
        load_student(saved)
    assert str(error.value).isprintable() and len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, t: t.double() if name == "base.0.weight" else t, "of torch.float64, got torch.float32"),
        (
            lambda name, t: t.int() if t.is_floating_point() else t,
            "expected weights of torch.float32, .* got torch.int32",
        ),
        (lambda name, t: t if t.is_floating_point() else t.float(), "tracked of torch.int64, got torch.float32"),
    ],
)
def test_weights_of_other_types_are_rejected(saved, trained, change, message):
    state = trained.student(3).state_dict()
    store(saved, {name: change(name, tensor).contiguous() for name, tensor in state.items()})
    with pytest.raises(ValueError, match=rf"student_4\.safetensors: .*{message}"):
        load_student(saved)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_student_of_another_floating_type_is_saved_and_loaded(tmp_path, trained, dtype):
    student = copy.deepcopy(trained.student(3)).to(dtype)
    loaded = load_student(save_student(student, tmp_path / "student_4", describe(trained, 3)))
    assert {p.dtype for p in loaded.parameters()} == {dtype}


@pytest.mark.parametrize(
    "changes",
    [{"accuracy": 99.0}, {"classes": list("abcdefh")}, {"image_size": 16},
     {"normalisation": {"mean": [0.5, 0.25, 0.4], "std": [0.2, 0.5, 0.75]}}],
)  # fmt: skip
def test_metadata_that_was_changed_after_the_save_is_rejected(saved, changes):
    edit(saved.with_suffix(".json"), **changes)
    with pytest.raises(ValueError, match=r"student_4\.json: changed after it was saved together with student_4\.safet"):
        load_student(saved)


def test_a_student_of_an_older_version_has_no_digest_of_its_metadata(saved, trained):
    store(saved, {name: tensor.contiguous() for name, tensor in trained.student(3).state_dict().items()})
    edit(saved.with_suffix(".json"), oekd_fast_version="0.1.0")
    assert load_student(saved).metadata.oekd_fast_version == "0.1.0"


def test_a_path_in_the_home_folder_is_expanded(tmp_path, trained, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_student(trained.student(3), "~/student_4", describe(trained, 3))
    assert load_student("~/student_4").metadata.index == 4
    with pytest.raises(FileNotFoundError, match=f"a student needs {tmp_path}/student_5.safetensors, which is missing"):
        load_student("~/student_5")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_fifo_is_refused_without_waiting(saved, suffix):
    saved.with_suffix(suffix).unlink()
    os.mkfifo(saved.with_suffix(suffix))
    with pytest.raises(ValueError, match=rf"student_4\{suffix}: expected a regular file, got a FIFO$"):
        load_student(saved)
