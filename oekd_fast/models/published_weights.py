"""Load weights of standard networks, as torchvision and timm publish them, into student 1."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from oekd_fast.common.tensors import not_finite
from oekd_fast.models.weight_files import read_weight_file
from oekd_fast.models.wrapped_weights import FoundWeights, find_weights

Classifier = Literal["strict", "skip", "auto"]
_CLASSIFIERS = ("strict", "skip", "auto")
_CLASSIFIER_NAME = re.compile(r"branch\.classifier\.(linear\.)?(weight|bias)")
_SHOWN = 3
_SKIP = "; classifier='skip' keeps the student's own last layer"


def load_standard_weights(
    student: nn.Module,
    state_dict: Mapping[str, Any] | Path | str,
    classifier: Classifier = "strict",
) -> str:
    """Copy the weights of a standard network into `student`, in place. An error leaves `student` unchanged.

    Names and shapes are checked, and that the weights are finite. timm's `tf_efficientnet_*` (with TensorFlow's "SAME"
    padding) and EfficientNets of timm with another eps of BatchNorm load without an error, but compute other outputs
    here.

    The weights may be wrapped as training scripts save them: in an entry such as "state_dict", "model" or "model_ema"
    of a checkpoint, and with a prefix of the names such as "module." or "_orig_mod.". An entry with an average of the
    weights is preferred.

    Args:
        student: `ensemble.student(0)` of a resnet* for ImageNet, resnext*, wide_resnet*, densenet121 or
            efficientnet_b*.
        state_dict: state dict of that network in torchvision or timm, or the path of a file with it: .safetensors, or
            a file of `torch.save`, which is read with `weights_only=True`.
        classifier: "strict" copies the last layer too. "skip" keeps the student's own, for another number of classes.
            "auto" skips it if the numbers of classes differ or `state_dict` has none, and copies it otherwise.

    Returns:
        What was taken, such as "the entry 'state_dict', without the prefix 'module.'"; empty if `state_dict` was taken
        as it is.

    Raises:
        ValueError: names or shapes differ from those of the student, which is the case for another width, depth,
            number of classes or number of channels; the message names the first tensors that differ. Also raised if a
            weight is not finite in the student's dtype (the message names the tensor, and the file if there is one),
            if the file is damaged or holds more than tensors and plain values, if there are weights of several
            networks, or if `classifier` is unknown.
        TypeError: `state_dict` is not a mapping, or a weight is not a tensor.
        FileNotFoundError: the file does not exist.
        ImportError: the file needs safetensors, which is not installed.
    """
    if classifier not in _CLASSIFIERS:
        raise ValueError(f"classifier: expected one of {_CLASSIFIERS}, got {classifier!r}")
    found = find_standard_weights(state_dict)
    weights = found.weights
    public = {found.layout.translate(name) or name: name for name in weights}
    expected = student.state_dict()
    other_classes = _lacks_classifier(public, expected) or _has_other_classes(weights, public, expected)
    if classifier == "skip" or (classifier == "auto" and other_classes):
        public = {ours: name for ours, name in public.items() if not _CLASSIFIER_NAME.fullmatch(ours)}
        expected = {ours: tensor for ours, tensor in expected.items() if not _CLASSIFIER_NAME.fullmatch(ours)}
    _check(weights, public, expected, found.original)
    tensors = {ours: weights[name].to(expected[ours].dtype) for ours, name in public.items()}
    if bad := not_finite(tensors):
        source = f"state_dict: {state_dict}" if isinstance(state_dict, Path | str) else "state_dict"
        raise ValueError(f"{source}: expected finite weights, got NaN or infinity in {found.original[public[bad]]!r}")
    student.load_state_dict(tensors, strict=False)
    return found.taken


def find_standard_weights(state_dict: Mapping[str, Any] | Path | str) -> FoundWeights:
    """Return the weights in `state_dict`, and what was taken from it; see `load_standard_weights`.

    Raises:
        ValueError, TypeError, FileNotFoundError, ImportError: as `load_standard_weights` does for `state_dict` alone.
    """
    content = read_weight_file(Path(state_dict)) if isinstance(state_dict, Path | str) else state_dict
    if not isinstance(content, Mapping):
        raise TypeError(f"state_dict: expected a mapping of names to tensors, got {type(content).__name__}")
    found = find_weights(content)
    if found is None:
        raise ValueError(
            "state_dict: expected the names of a ResNet, DenseNet or EfficientNet as torchvision or timm has them, "
            f"got {_first([str(name) for name in content])}"
        )
    _check_tensors(found)
    return found


def _check_tensors(found: FoundWeights) -> None:
    for name, tensor in found.weights.items():
        given = found.original[name]
        if not isinstance(tensor, Tensor):
            raise TypeError(f"state_dict: expected a tensor as {given!r}, got {type(tensor).__name__}")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
            raise ValueError(f"state_dict: expected a dense tensor of real numbers as {given!r}, got {_kind(tensor)}")


def _kind(tensor: Tensor) -> str:
    return f"one of {tensor.dtype} in the layout {tensor.layout}"


def _lacks_classifier(public: Mapping[str, str], expected: Mapping[str, Tensor]) -> bool:
    own = {name for name in expected if _CLASSIFIER_NAME.fullmatch(name)}
    return bool(own) and not own & public.keys()


def _has_other_classes(
    state_dict: Mapping[str, Tensor], public: Mapping[str, str], expected: Mapping[str, Tensor]
) -> bool:
    return any(
        state_dict[name].shape[:1] != expected[ours].shape[:1]
        for ours, name in public.items()
        if ours in expected and _CLASSIFIER_NAME.fullmatch(ours)
    )


def _check(
    state_dict: Mapping[str, Tensor],
    public: Mapping[str, str],
    expected: Mapping[str, Tensor],
    original: Mapping[str, str],
) -> None:
    # Files from before PyTorch 0.4.1 have no num_batches_tracked.
    missing = [name for name in expected if name not in public and not name.endswith("num_batches_tracked")]
    unexpected = [original[name] for ours, name in public.items() if ours not in expected]
    if missing or unexpected:
        only_classes = not unexpected and all(_CLASSIFIER_NAME.fullmatch(ours) for ours in missing)
        raise ValueError(
            "state_dict: the tensors are not those of the student; "
            f"missing: {_first(missing)}; unexpected: {_first(unexpected)}{_SKIP * only_classes}"
        )
    wrong = [ours for ours, name in public.items() if state_dict[name].shape != expected[ours].shape]
    if wrong:
        given = {ours: (original[public[ours]], list(state_dict[public[ours]].shape)) for ours in wrong}
        shapes = [
            f"{name}: expected {list(expected[ours].shape)}, got {shape}" for ours, (name, shape) in given.items()
        ]
        only_classes = all(_CLASSIFIER_NAME.fullmatch(ours) for ours in wrong)
        raise ValueError(
            f"state_dict: the shapes are not those of the student; {_first(shapes, '; ')}{_SKIP * only_classes}"
        )


def _first(names: list[str], separator: str = ", ") -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (separator.join(names[:_SHOWN]) or "none") + more
