"""Load weights of standard networks, as torchvision and timm publish them, into student 1."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from oekd_fast.models.published_names import find_layout

Classifier = Literal["strict", "skip", "auto"]
_CLASSIFIERS = ("strict", "skip", "auto")
_CLASSIFIER_NAME = re.compile(r"branch\.classifier\.(linear\.)?(weight|bias)")
_SHOWN = 3


def load_standard_weights(
    student: nn.Module,
    state_dict: Mapping[str, Tensor] | Path | str,
    classifier: Classifier = "strict",
) -> None:
    """Copy the weights of a standard network into `student`, in place. An error leaves `student` unchanged.

    Only names and shapes are checked. timm's `tf_efficientnet_*` (with TensorFlow's "SAME" padding) and EfficientNets
    of timm with another eps of BatchNorm load without an error, but compute other outputs here.

    Args:
        student: `ensemble.student(0)` of a resnet* for ImageNet, resnext*, wide_resnet*, densenet121 or
            efficientnet_b*.
        state_dict: state dict of that network in torchvision or timm, or the path of a file with it: .safetensors, or
            a file of `torch.save`, which is read with `weights_only=True`.
        classifier: "strict" copies the last layer too. "skip" keeps the student's own, for another number of classes.
            "auto" skips it if the numbers of classes differ, and copies it otherwise.

    Raises:
        ValueError: names or shapes differ from those of the student, which is the case for another width, depth,
            number of classes or number of channels; the message names the first tensors that differ. Also raised if
            the file is damaged or `classifier` is unknown.
        TypeError: `state_dict` is not a mapping of names to tensors.
        FileNotFoundError: the file does not exist.
        ImportError: the file needs safetensors, which is not installed.
    """
    if classifier not in _CLASSIFIERS:
        raise ValueError(f"classifier: expected one of {_CLASSIFIERS}, got {classifier!r}")
    if isinstance(state_dict, Path | str):
        state_dict = _read(Path(state_dict))
    _check_mapping(state_dict)
    layout = find_layout(state_dict)
    if layout is None:
        raise ValueError(
            "state_dict: expected the names of a ResNet, DenseNet or EfficientNet as torchvision or timm has them, "
            f"got {_first(list(state_dict))}"
        )
    public = {layout.translate(name) or name: name for name in state_dict}
    expected = student.state_dict()
    if classifier == "skip" or (classifier == "auto" and _has_other_classes(state_dict, public, expected)):
        public = {ours: name for ours, name in public.items() if not _CLASSIFIER_NAME.fullmatch(ours)}
        expected = {ours: tensor for ours, tensor in expected.items() if not _CLASSIFIER_NAME.fullmatch(ours)}
    _check(state_dict, public, expected)
    student.load_state_dict({ours: state_dict[name] for ours, name in public.items()}, strict=False)


def _read(path: Path) -> Mapping[str, Tensor]:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise _unreadable(path, error) from error


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f"{path}: reading it needs safetensors: pip install 'oekd_fast[train]'") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"state_dict: {path} cannot be read ({repr(error).splitlines()[0]})")


def _check_mapping(state_dict: object) -> None:
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict: expected a mapping of names to tensors, got {type(state_dict).__name__}")
    for name, tensor in state_dict.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"state_dict: expected a tensor as {name!r}, got {type(tensor).__name__}")


def _has_other_classes(
    state_dict: Mapping[str, Tensor], public: Mapping[str, str], expected: Mapping[str, Tensor]
) -> bool:
    return any(
        state_dict[name].shape[:1] != expected[ours].shape[:1]
        for ours, name in public.items()
        if ours in expected and _CLASSIFIER_NAME.fullmatch(ours)
    )


def _check(state_dict: Mapping[str, Tensor], public: Mapping[str, str], expected: Mapping[str, Tensor]) -> None:
    # Files from before PyTorch 0.4.1 have no num_batches_tracked.
    missing = [name for name in expected if name not in public and not name.endswith("num_batches_tracked")]
    unexpected = [name for ours, name in public.items() if ours not in expected]
    if missing or unexpected:
        raise ValueError(
            "state_dict: the tensors are not those of the student; "
            f"missing: {_first(missing)}; unexpected: {_first(unexpected)}"
        )
    wrong = [ours for ours, name in public.items() if state_dict[name].shape != expected[ours].shape]
    if wrong:
        shapes = [
            f"{public[ours]}: expected {list(expected[ours].shape)}, got {list(state_dict[public[ours]].shape)}"
            for ours in wrong
        ]
        only_classes = all(_CLASSIFIER_NAME.fullmatch(ours) for ours in wrong)
        hint = "; classifier='skip' keeps the student's own last layer" if only_classes else ""
        raise ValueError(f"state_dict: the shapes are not those of the student; {_first(shapes, '; ')}{hint}")


def _first(names: list[str], separator: str = ", ") -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (separator.join(names[:_SHOWN]) or "none") + more
