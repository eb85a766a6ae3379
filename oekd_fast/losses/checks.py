"""Argument validation of the losses: each error names the argument, what was expected and what was given.

Only ``check_scalar_values`` reads what tensors hold, which waits for their device. The labels are checked in
:mod:`oekd_fast.losses.target_checks`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from oekd_fast.losses.calls import KDOptions

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
REDUCTIONS = ("mean", "sum", "none")
DIVERGENCES = ("forward", "reverse", "js", "decoupled")
MIXING_SPACES = ("logits", "probabilities")
DEVICE_SCALARS = ("temperature", "ce_weight", "kd_weight", "ensemble_ce_weight")  # options that may be tensors


def check_options(options: KDOptions) -> None:
    for name in DEVICE_SCALARS:
        value = getattr(options, name)
        if type(value) is float:  # the usual case needs no slower test of its type
            _check_number(name, value)
        elif isinstance(value, Tensor):
            _check_one_element(name, value)
        elif isinstance(value, Real):
            _check_number(name, value)
        else:
            raise TypeError(f"{name}: expected a number or a tensor of one element, got {type(value).__name__}")
    smoothing = options.label_smoothing
    if type(smoothing) is not float and not isinstance(smoothing, Real):
        raise TypeError(f"label_smoothing: expected a number, got {type(smoothing).__name__}")
    if not 0.0 <= smoothing <= 1.0:
        raise ValueError(f"label_smoothing: expected a number in [0, 1], got {smoothing!r}")
    if options.reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {REDUCTIONS}, got {options.reduction!r}")
    if options.divergence not in DIVERGENCES:
        raise ValueError(f"divergence: expected one of {DIVERGENCES}, got {options.divergence!r}")
    _check_beta(options.beta, options.divergence)
    if type(options.standardise_logits) is not bool:
        raise TypeError(f"standardise_logits: expected a bool, got {type(options.standardise_logits).__name__}")
    if type(options.class_dim) is not int:
        raise TypeError(f"class_dim: expected an int, got {type(options.class_dim).__name__}")
    if options.mixing_space not in MIXING_SPACES:
        raise ValueError(f"mixing_space: expected one of {MIXING_SPACES}, got {options.mixing_space!r}")
    if options.mixing is not None:
        _check_mixing(options.mixing)
        if not options.detach_ensemble:
            raise ValueError("mixing: expected detach_ensemble=True beside it, got detach_ensemble=False")
    elif options.mixing_space != "logits":
        raise ValueError(f"mixing_space: expected mixing beside {options.mixing_space!r}, got mixing None")


def _check_number(name: str, value: float) -> None:
    positive = name == "temperature"
    # torch.compile can compare a symbolic number, but cannot call math.isfinite on it.
    if not -math.inf < value < math.inf or (positive and value <= 0):
        raise ValueError(f"{name}: expected a finite number{' > 0' if positive else ''}, got {value!r}")


def _check_beta(beta: object, divergence: str) -> None:
    if type(beta) is not float and not isinstance(beta, Real):
        raise TypeError(f"beta: expected a number, got {type(beta).__name__}")
    if divergence == "decoupled":
        if not 0.0 <= beta < math.inf:
            raise ValueError(f"beta: expected a finite number >= 0 with divergence='decoupled', got {beta!r}")
    elif not 0.0 < beta < 1.0:
        raise ValueError(f"beta: expected a number in (0, 1), got {beta!r}")


def _check_one_element(name: str, value: Tensor) -> None:
    if value.numel() != 1:
        raise ValueError(f"{name}: expected a number or a tensor of one element, got shape {list(value.shape)}")
    if not value.is_floating_point():
        raise TypeError(f"{name}: expected a floating dtype, got {value.dtype}")


def _check_mixing(mixing: object) -> None:
    if not isinstance(mixing, Tensor):
        raise TypeError(f"mixing: expected a tensor [S, S] or None, got {type(mixing).__name__}")
    if mixing.dim() != 2:
        raise ValueError(f"mixing: expected a matrix, a row for each student, got shape {list(mixing.shape)}")
    if not mixing.is_floating_point():
        raise TypeError(f"mixing: expected a floating dtype, got {mixing.dtype}")


def check_scalar_devices(options: KDOptions, device: torch.device) -> None:
    """Check that numbers which are tensors are on the device of the logits."""
    for name in DEVICE_SCALARS:
        if isinstance(value := getattr(options, name), Tensor):
            check_tensor(name, value, device)


def check_logits(logits) -> list[Tensor]:
    if isinstance(logits, Tensor):
        if logits.dim() < 3:
            raise ValueError(
                f"logits: expected S tensors [B, C] or one [S, B, C], got one of shape {list(logits.shape)}"
            )
        students = list(logits.unbind(0))
    elif isinstance(logits, Sequence):
        students = list(logits)
    else:
        raise TypeError(f"logits: expected a sequence of tensors or one tensor, got {type(logits).__name__}")
    if not students:
        raise ValueError("logits: expected at least one student, got none")
    first = students[0]
    if not isinstance(first, Tensor):
        raise TypeError(f"logits[0]: expected a tensor, got {type(first).__name__}")
    shape, dtype, device = first.shape, first.dtype, first.device  # each access costs, and small calls are frequent
    if len(shape) < 2:
        raise ValueError(f"logits[0]: expected shape [B, C] or [B, C, d1, ...], got {list(shape)}")
    for j in range(1, len(students)):
        z = students[j]
        if not isinstance(z, Tensor):
            raise TypeError(f"logits[{j}]: expected a tensor, got {type(z).__name__}")
        if z.shape != shape:
            raise ValueError(f"logits[{j}]: expected shape {list(shape)} as logits[0], got {list(z.shape)}")
        if z.dtype != dtype:
            raise TypeError(f"logits[{j}]: expected dtype {dtype} as logits[0], got {z.dtype}")
        if z.device != device:
            raise ValueError(f"logits[{j}]: expected device {device} as logits[0], got {z.device}")
    if dtype not in DTYPES:
        raise TypeError(f"logits: expected float32, float16, bfloat16 or float64, got {dtype}")
    return students


def check_class_dim(class_dim: int, shape: torch.Size) -> int:
    """Return the class dimension of logits of `shape`, counted from the left."""
    dims = len(shape)
    if not -dims <= class_dim < dims:
        raise ValueError(
            f"class_dim: expected a number in [{-dims}, {dims - 1}] for logits of shape {list(shape)}, got {class_dim}"
        )
    class_dim %= dims
    if shape[class_dim] == 0:
        raise ValueError("logits: expected at least one class, got C = 0")
    return class_dim


def check_ensemble_weights(weights, students: list[Tensor], class_dim: int, options: KDOptions) -> None:
    check_tensor("ensemble_weights", weights, students[0].device)
    rows = list(students[0].shape)
    del rows[class_dim]
    each, gate = [len(students)], [*rows, len(students)]
    given = list(weights.shape)
    if given not in (each, gate):
        raise ValueError(
            f"ensemble_weights: expected shape {each}, one a student, or a gate {gate}, one a row and student, "
            f"got {given}"
        )
    if given == gate and options.mixing is not None:
        raise ValueError(f"ensemble_weights: expected shape {each} beside mixing, which makes the targets, got {given}")
    if not weights.is_floating_point():
        raise TypeError(f"ensemble_weights: expected a floating dtype, got {weights.dtype}")


def check_teacher_logits(teacher_logits, like: Tensor) -> tuple[Tensor, ...]:
    """Return the logits of the K external teachers, which must have the shape of the logits `like` of a student."""
    if isinstance(teacher_logits, Tensor):
        if teacher_logits.dim() == like.dim():
            _check_teacher("teacher_logits", teacher_logits, like)
            return (teacher_logits,)
        if teacher_logits.dim() != like.dim() + 1:
            raise ValueError(
                f"teacher_logits: expected shape {list(like.shape)}, or [K, {', '.join(map(str, like.shape))}] for "
                f"K teachers, got {list(teacher_logits.shape)}"
            )
        teachers = teacher_logits.unbind(0)
    elif isinstance(teacher_logits, Sequence):
        teachers = tuple(teacher_logits)
    else:
        raise TypeError(
            f"teacher_logits: expected a tensor or a sequence of tensors, got {type(teacher_logits).__name__}"
        )
    if not teachers:
        raise ValueError("teacher_logits: expected at least one teacher, got none")
    for k, teacher in enumerate(teachers):
        _check_teacher(f"teacher_logits[{k}]", teacher, like)
    return teachers


def _check_teacher(name: str, teacher, like: Tensor) -> None:
    check_tensor(name, teacher, like.device)
    if teacher.shape != like.shape:
        raise ValueError(f"{name}: expected shape {list(like.shape)} as a student's logits, got {list(teacher.shape)}")
    if teacher.dtype not in DTYPES:
        raise TypeError(f"{name}: expected float32, float16, bfloat16 or float64, got {teacher.dtype}")


def check_mixing_shape(mixing: Tensor | None, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> None:
    expected = [len(students), len(students) + len(teachers)]
    if mixing is None:
        if len(teachers) > 1:
            raise ValueError(f"mixing: expected shape {expected} with {len(teachers)} external teachers, got None")
        return
    check_tensor("mixing", mixing, students[0].device)
    if list(mixing.shape) != expected:
        raise ValueError(
            f"mixing: expected shape {expected} = [students, students + teachers], got {list(mixing.shape)}"
        )


def check_weights_grad(weights_grad, ensemble_weights: Tensor | None) -> None:
    if ensemble_weights is None:
        raise ValueError("weights_grad: expected ensemble_weights beside it, got ensemble_weights None")
    check_tensor("weights_grad", weights_grad, ensemble_weights.device)
    _check_like("weights_grad", weights_grad, ensemble_weights.shape, ensemble_weights.dtype, "ensemble_weights")


def check_tensor(name: str, value: object, device: torch.device, like: str = "the logits") -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.device != device:
        raise ValueError(f"{name}: expected device {device} as {like}, got {value.device}")


def check_scalar_values(options: KDOptions) -> None:
    """Check the values of numbers which are tensors. Waits for their device."""
    for name in DEVICE_SCALARS:
        value = getattr(options, name)
        if isinstance(value, Tensor):
            _check_number(name, value.item())


def check_grad_scale(
    grad_scale: object, device: torch.device, like: str = "the logits", rows: Sequence[int] | None = None
) -> None:
    """Check a factor of gradients: one element, or with `rows` also one a row, in that shape."""
    check_tensor("grad_scale", grad_scale, device, like)
    if grad_scale.numel() == 1 or (rows is not None and list(grad_scale.shape) == list(rows)):
        return
    expected = "a tensor of one element" + ("" if rows is None else f", or one a row of shape {list(rows)}")
    raise ValueError(f"grad_scale: expected {expected}, got shape {list(grad_scale.shape)}")


def check_out(
    out: Sequence[Tensor] | Tensor, students: int, shape: torch.Size, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """Return the buffers for the gradients of logits of this number, shape, dtype and device."""
    buffers = list(out.unbind(0)) if isinstance(out, Tensor) else list(out)
    if len(buffers) != students:
        raise ValueError(f"out: expected {students} buffers, one a student, got {len(buffers)}")
    for j, buffer in enumerate(buffers):
        fits = isinstance(buffer, Tensor) and buffer.shape == shape and buffer.dtype == dtype
        if not (fits and buffer.device == device and buffer.is_contiguous()):  # the usual case needs no names
            check_tensor(f"out[{j}]", buffer, device, like=f"logits[{j}]")
            _check_like(f"out[{j}]", buffer, shape, dtype, f"logits[{j}]")
    return buffers


def _check_like(name: str, buffer: Tensor, shape: torch.Size, dtype: torch.dtype, like: str) -> None:
    """Check a buffer that is overwritten with the gradient of a tensor of this shape and dtype."""
    if buffer.shape != shape:
        raise ValueError(f"{name}: expected shape {list(shape)} as {like}, got {list(buffer.shape)}")
    if buffer.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {dtype} as {like}, got {buffer.dtype}")
    if any(stride == 0 and size > 1 for stride, size in zip(buffer.stride(), buffer.shape, strict=True)):
        raise ValueError(f"{name}: expected separate memory for every element, got strides {list(buffer.stride())}")


def check_block(block: int, maps, teacher: Tensor, weights, biases) -> None:
    if not len(maps) == len(weights) == len(biases):
        raise ValueError(
            f"block {block}: expected as many student maps as weights and biases, "
            f"got {len(maps)}, {len(weights)} and {len(biases)}"
        )
    for j, (student, weight, bias) in enumerate(zip(maps, weights, biases, strict=True)):
        where = f"block {block}, student map {j}"
        if student.shape[0] != teacher.shape[0] or student.shape[2:] != teacher.shape[2:]:
            raise ValueError(
                f"{where}: expected batch and size of the teacher's {list(teacher.shape)}, got {list(student.shape)}"
            )
        if weight.shape[:2] != (teacher.shape[1], student.shape[1]) or weight.numel() != weight.shape[:2].numel():
            raise ValueError(
                f"{where}: expected a weight [{teacher.shape[1]}, {student.shape[1]}(, 1, 1)], got {list(weight.shape)}"
            )
        if bias.shape != (teacher.shape[1],):
            raise ValueError(f"{where}: expected a bias [{teacher.shape[1]}], got {list(bias.shape)}")
