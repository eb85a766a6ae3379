"""Argument validation of the loss of classifiers: hidden states, weights and biases."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from oekd_fast.losses.calls import KDOptions
from oekd_fast.losses.checks import DEVICE_SCALARS, DTYPES, check_tensor


def check_linear_options(options: KDOptions) -> None:
    """Check that the options are among those that chunks of rows can be computed with."""
    if options.reduction == "none":
        raise ValueError("reduction: expected 'mean' or 'sum' for linear_ensemble_kd_loss, got 'none'")
    if options.class_dim != 1:
        raise ValueError(f"class_dim: expected no such option, since weights are [C, D], got {options.class_dim}")
    if not options.detach_ensemble:
        raise ValueError("detach_ensemble: expected True for linear_ensemble_kd_loss, got False")
    for name in (*DEVICE_SCALARS, "mixing"):
        value = getattr(options, name)
        if isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name}: expected a tensor that requires no gradient, got requires_grad=True")


def check_classifiers(hidden: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
    for name, values in (("hidden", hidden), ("weights", weights), ("biases", biases)):
        if isinstance(values, Tensor) or not isinstance(values, Sequence):
            raise TypeError(f"{name}: expected a sequence of tensors, one a student, got {type(values).__name__}")
    if not hidden:
        raise ValueError("hidden: expected at least one student, got none")
    for name, values in (("weights", weights), ("biases", biases)):
        if len(values) != len(hidden):
            raise ValueError(f"{name}: expected {len(hidden)}, one a student as in hidden, got {len(values)}")
    first = hidden[0]
    if isinstance(first, Tensor) and first.dtype not in DTYPES:
        raise TypeError(f"hidden[0]: expected float32, float16, bfloat16 or float64, got {first.dtype}")
    for j in range(len(hidden)):
        _check_classifier(
            (f"hidden[{j}]", f"weights[{j}]", f"biases[{j}]"), hidden[j], weights[j], biases[j], first, weights[0]
        )


def check_student_weights(weights, students: int) -> None:
    if not isinstance(weights, Tensor):
        raise TypeError(f"ensemble_weights: expected a tensor, got {type(weights).__name__}")
    if list(weights.shape) != [students]:
        raise ValueError(
            f"ensemble_weights: expected shape [{students}], one weight a student, got {list(weights.shape)}"
        )
    if weights.requires_grad and torch.is_grad_enabled():
        raise ValueError("ensemble_weights: expected a tensor that requires no gradient, got requires_grad=True")


def check_chunk_rows(rows: object) -> None:
    if rows is not None and (type(rows) is not int or rows < 1):
        raise ValueError(f"chunk_rows: expected an int >= 1 or None, got {rows!r}")


def check_teacher(hidden, weight, bias, like: Tensor, classes: int) -> None:
    """Check an external teacher against the hidden states `like` of a student."""
    names = ("teacher_hidden", "teacher_weight", "teacher_bias")
    for name, value in zip(names[:2], (hidden, weight), strict=True):
        if value is None:
            raise ValueError(f"{name}: expected a tensor beside the other tensors of the teacher, got None")
    _check_classifier(names, hidden, weight, bias, like, weight, same_dtype=False)
    if weight.shape[0] != classes:
        raise ValueError(f"teacher_weight: expected shape [{classes}, D], got {list(weight.shape)}")


def _check_classifier(names, hidden, weight, bias, first, first_weight, same_dtype=True) -> None:
    device = first.device if isinstance(first, Tensor) else torch.device("cpu")
    check_tensor(names[0], hidden, device, "hidden[0]")
    if hidden.dim() < 2 or hidden.shape[:-1] != first.shape[:-1]:
        expected = list(first.shape[:-1]) if first.dim() > 1 else ["..."]
        raise ValueError(f"{names[0]}: expected shape [{', '.join(map(str, expected))}, D], got {list(hidden.shape)}")
    check_tensor(names[1], weight, device, "hidden[0]")
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1] or weight.shape[0] != first_weight.shape[0]:
        classes = first_weight.shape[0] if first_weight.dim() == 2 else "C"
        raise ValueError(f"{names[1]}: expected shape [{classes}, {hidden.shape[-1]}], got {list(weight.shape)}")
    if weight.shape[0] == 0:
        raise ValueError(f"{names[1]}: expected at least one class, got C = 0")
    if bias is not None:
        check_tensor(names[2], bias, device, "hidden[0]")
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"{names[2]}: expected shape [{weight.shape[0]}], got {list(bias.shape)}")
    dtype = first.dtype if same_dtype else hidden.dtype
    like = "hidden[0]" if same_dtype else names[0]
    if torch.is_autocast_enabled(hidden.device.type):
        return
    for name, tensor in zip(names, (hidden, weight, bias), strict=True):
        if tensor is not None and tensor.dtype != dtype:
            raise TypeError(f"{name}: expected dtype {dtype} as {like}, got {tensor.dtype}")
