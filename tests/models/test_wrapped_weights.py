"""Weights as training scripts save them: entries, prefixes, objects beside the tensors, no classifier."""

import argparse
import io
import pathlib
import re
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from oekd_fast import build_ensemble, load_standard_weights
from oekd_fast.runs.build import initial_weights_note
from oekd_fast.train import main

from .published_nets import published


@pytest.fixture(scope="module")
def plain():
    torch.manual_seed(0)
    return published("resnet18", num_classes=3)[1].state_dict()


@pytest.fixture(scope="module")
def student():
    return build_ensemble("resnet18", 1, 3).student(0)


def under(prefix, weights):
    return {prefix + name: tensor for name, tensor in weights.items()}


def other(weights):
    return {name: torch.zeros_like(tensor) for name, tensor in weights.items()}


def compiled_stage(weights):
    return {name.replace("layer1.", "layer1._orig_mod."): tensor for name, tensor in weights.items()}


WRAPPED = {
    "as it is": (lambda w: w, ""),
    "state_dict": (lambda w: {"epoch": 90, "state_dict": w, "optimizer": {"state": {}}}, "the entry 'state_dict'"),
    "model": (lambda w: {"model": w, "args": argparse.Namespace(lr=0.1)}, "the entry 'model'"),
    "model_state_dict": (lambda w: {"model_state_dict": w}, "the entry 'model_state_dict'"),
    "model_ema": (
        lambda w: {"model": other(w), "model_ema": {"n_averaged": torch.tensor(3), **under("module.", w)}},
        "the entry 'model_ema', without the prefix 'module.', leaving out 'n_averaged'",
    ),
    "state_dict_ema": (lambda w: {"state_dict": other(w), "state_dict_ema": w}, "the entry 'state_dict_ema'"),
    "no average yet": (lambda w: {"model_ema": None, "model": w}, "the entry 'model'"),
    "module.": (lambda w: under("module.", w), "without the prefix 'module.'"),
    "_orig_mod.": (lambda w: under("_orig_mod.", w), ""),
    "model.": (
        lambda w: {"state_dict": {**under("model.", w), "loss.weight": torch.ones(2)}, "hyper_parameters": {"lr": 1}},
        "the entry 'state_dict', without the prefix 'model.', leaving out 'loss.weight'",
    ),
    "nested prefixes": (lambda w: under("module._orig_mod.model.", w), "without the prefix 'module.model.'"),
    "compiled stage": (compiled_stage, ""),
    "nested entries": (
        lambda w: {"state": {"model": {"state_dict": under("module.", w)}}},
        "the entry 'state_dict' of 'model' of 'state', without the prefix 'module.'",
    ),
    "unknown entry": (lambda w: {"my_weights": w, "history": {"loss": [1.0]}}, "the entry 'my_weights'"),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_wrapped_weights_are_found_and_said(tmp_path, student, plain, case):
    wrap, taken = WRAPPED[case]
    torch.save(wrap(plain), tmp_path / "weights.pth")
    assert load_standard_weights(student, tmp_path / "weights.pth", classifier="auto") == taken
    state = student.state_dict()
    assert torch.equal(state["base.stage.1.conv2.weight"], plain["layer1.1.conv2.weight"])
    assert torch.equal(state["branch.classifier.bias"], plain["fc.bias"])


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".ckpt", ".safetensors"])
def test_suffixes_of_files(tmp_path, student, plain, suffix, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path, weights = tmp_path / f"weights{suffix}", under("module.", plain)
    save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
    assert load_standard_weights(student, f"~/{path.name}") == "without the prefix 'module.'"


def test_weights_without_a_classifier_keep_that_of_the_student(student, plain):
    backbone = {name: tensor for name, tensor in plain.items() if not name.startswith("fc.")}
    own = student.branch.classifier.weight.clone()
    for classifier in ("auto", "skip"):
        load_standard_weights(student, backbone, classifier=classifier)
        assert torch.equal(student.branch.classifier.weight, own)
    message = "missing: branch.classifier.weight, branch.classifier.bias; unexpected: none; classifier='skip' keeps"
    with pytest.raises(ValueError, match=re.escape(message)):
        load_standard_weights(student, backbone)


def zipped(content, compression):
    file, packed = io.BytesIO(), io.BytesIO()
    torch.save(content, file)
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(packed, "w", compression) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    return packed.getvalue()


class RunsCode:
    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("executed"),)


REFUSED = {
    "two entries": (lambda w: {"a": w, "b": w}, "expected one network, got one in each of the entries 'a', 'b'"),
    "two prefixes": (
        lambda w: {**under("student.", w), **under("teacher.", w)},
        "expected one network, got one for each of the prefixes 'student.', 'teacher.' of names",
    ),
    "numpy number": (
        lambda w: {"state_dict": w, "accuracy": np.float64(3)},
        "scalar, which is not a tensor",
    ),
    "code": (lambda w: {"state_dict": w, "run": RunsCode()}, "which is not a tensor; if you trust the file, save"),
    "module": (lambda w: torch.nn.Linear(2, 2), "it holds torch.nn.modules.linear.Linear, which is not a tensor"),
    "sparse": (lambda w: w | {"fc.weight": w["fc.weight"].to_sparse()}, "expected a dense tensor of real numbers as"),
    "expanded": (lambda w: w | {"fc.weight": torch.zeros(1).expand(10**6, 10**6)}, "got [1000000, 1000000]"),
    "one value": (lambda w: w | {"fc.weight": 3.0}, "expected a tensor as 'fc.weight', got float"),
    "list": (lambda w: [w], "expected a mapping of names to tensors, got list"),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("case", REFUSED)
def test_other_content_is_refused_in_one_line(tmp_path, student, plain, case, legacy, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, message = REFUSED[case]
    torch.save(make(plain), tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises((TypeError, ValueError), match=re.escape(message)) as error:
        load_standard_weights(student, "w.pth")
    assert "\n" not in str(error.value) and str(error.value).startswith("state_dict: ")
    assert not (tmp_path / "executed").exists()


FILES = {
    "compressed": (lambda w: zipped(w, zipfile.ZIP_DEFLATED), "an archive of uncompressed files, got compressed ones"),
    "pointer": (lambda w: b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "web page": (lambda w: b"<!doctype html><html></html>", "a web page; download the file itself"),
    "truncated": (lambda w: zipped(w, zipfile.ZIP_STORED)[:-30], "BadZipFile"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_are_no_weights_are_named(tmp_path, student, plain, case):
    content, message = FILES[case]
    (tmp_path / "w.pth").write_bytes(content({"layer1.0.conv1.weight": torch.zeros(100)}))
    with pytest.raises(ValueError, match=rf"^state_dict: .*w\.pth cannot be read \(.*{re.escape(message)}"):
        load_standard_weights(student, tmp_path / "w.pth")


def test_a_folder_in_place_of_a_file_is_refused(tmp_path, student):
    with pytest.raises(ValueError, match="state_dict: expected a file, got .*, which is not a regular file"):
        load_standard_weights(student, tmp_path)


def test_a_run_says_which_weights_it_takes(tmp_path, plain):
    torch.save({"model": plain, "epoch": 3}, tmp_path / "w.pth")
    assert initial_weights_note(tmp_path / "w.pth") == f"Initial weights of {tmp_path / 'w.pth'}: the entry 'model'"
    torch.save(plain, tmp_path / "w.pth")
    assert initial_weights_note(tmp_path / "w.pth") is None


def test_the_command_refuses_weights_in_one_line(tmp_path, capsys, monkeypatch):
    torch.save({"state_dict": {}, "metrics": np.float64(1)}, tmp_path / "w.pth")
    options = ["--model=resnet18", f"--initial-weights={tmp_path / 'w.pth'}", f"--output-dir={tmp_path / 'run'}"]
    monkeypatch.setattr(sys, "argv", ["train", *options])
    with pytest.raises(SystemExit) as ended:
        sys.exit(main())
    error = capsys.readouterr().err.strip()
    assert ended.value.code and "\n" not in error
    assert error.startswith("error: initial_weights: state_dict: ") and "which is not a tensor" in error
