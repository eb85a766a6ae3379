"""Argument validation of the labels, and of the class weights and counts that belong to them.

The functions that read what tensors hold, which waits for their device, say so.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from oekd_fast.losses.checks import check_tensor

if TYPE_CHECKING:
    from oekd_fast.losses.calls import KDOptions

INDEX_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
PROBABILITY_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SUM_TOLERANCE = 1e-2  # bfloat16 rounds each probability by at most 1 / 256 of its value


def check_target(target, shape: torch.Size, class_dim: int, device: torch.device, options: KDOptions) -> None:
    """Check labels for logits of `shape`, whose classes are in the dimension `class_dim` >= 0."""
    if target is None:
        # A tensor is refused whatever it holds: its value may change, and reading it would wait for the device.
        for name in ("ce_weight", "ensemble_ce_weight"):
            value = getattr(options, name)
            if isinstance(value, Tensor) or value != 0:
                given = f"a tensor as {name}" if isinstance(value, Tensor) else f"{name} {value}"
                raise ValueError(
                    "target: expected class indices or probabilities (None only if "
                    f"{name} is the number 0), got None with {given}"
                )
        if options.divergence == "decoupled":
            raise ValueError("target: expected class indices with divergence='decoupled', got None")
        return
    check_tensor("target", target, device)
    if target.dtype in INDEX_DTYPES:
        expected = shape[:class_dim] + shape[class_dim + 1 :]
        kind = "class indices"
    elif target.dtype in PROBABILITY_DTYPES:
        expected = shape
        kind = "probabilities"
    else:
        raise TypeError(f"target: expected class indices or floating probabilities, got {target.dtype}")
    if options.divergence == "decoupled" and kind == "probabilities":
        raise ValueError(f"target: expected class indices with divergence='decoupled', got dtype {target.dtype}")
    if target.shape != expected:
        raise ValueError(
            f"target: expected {kind} of shape {list(expected)} with dtype {target.dtype}, for logits of shape "
            f"{list(shape)}, got {list(target.shape)}"
        )


def check_labels(target: Tensor, classes: int, ignore_index: int) -> None:
    """Check that each label is in [0, classes) or equals ignore_index. Waits for the device of the labels."""
    target = target.reshape(-1).long()
    bad = ((target < 0) | (target >= classes)) & (target != ignore_index)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"target: expected labels in [0, {classes}) or ignore_index {ignore_index}, "
            f"got {int(target[row])} at row {row}"
        )


def check_probabilities(target: Tensor) -> None:
    """Check rows of probabilities, [R, C] or [O, C, I]. Waits for the device of the target."""
    sums = target.sum(dim=1, dtype=torch.float64 if target.dtype == torch.float64 else torch.float32).reshape(-1)
    # NaN fails both comparisons.
    negative = ~(target >= 0).all(dim=1).reshape(-1)
    bad = negative | ~((sums - 1).abs() <= SUM_TOLERANCE)
    if not bad.any():
        return
    row = int(bad.nonzero()[0])
    rows = target if target.dim() == 2 else target.movedim(1, -1).flatten(0, 1)
    if negative[row]:
        value = rows[row][~(rows[row] >= 0)][0].item()
        raise ValueError(f"target: expected probabilities >= 0, got {value:g} at row {row}")
    raise ValueError(f"target: expected probabilities that sum to 1 in each row, got {sums[row].item():g} at row {row}")


def check_weight(weight: object) -> None:
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight: expected a tensor [C] or None, got {type(weight).__name__}")
    if weight.dim() != 1:
        raise ValueError(f"weight: expected shape [C], one weight a class, got {list(weight.shape)}")
    if not weight.is_floating_point():
        raise TypeError(f"weight: expected a floating dtype, got {weight.dtype}")
    if weight.requires_grad:
        raise ValueError("weight: expected a tensor that requires no gradient, got requires_grad=True")


def check_weight_length(weight: Tensor, classes: int, device: torch.device) -> None:
    check_tensor("weight", weight, device)
    if weight.shape[0] != classes:
        raise ValueError(f"weight: expected shape [{classes}], one weight a class, got {list(weight.shape)}")


def check_weight_values(weight: Tensor) -> None:
    """Check the class weights. Waits for their device."""
    if not (weight.isfinite() & (weight >= 0)).all():
        bad = int((~(weight.isfinite() & (weight >= 0))).nonzero()[0])
        raise ValueError(f"weight: expected finite numbers >= 0, got {weight[bad].item():g} for class {bad}")
    if not (weight > 0).any():
        raise ValueError("weight: expected a weight > 0 for at least one class, got 0 for all")


def check_num_items(num_items: object, options: KDOptions, device: torch.device) -> None:
    if options.reduction != "mean":
        raise ValueError(
            f"num_items: expected reduction='mean', whose divisor it replaces, got reduction={options.reduction!r}"
        )
    if isinstance(num_items, Tensor):
        check_tensor("num_items", num_items, device)
        if num_items.numel() != 1:
            raise ValueError(
                f"num_items: expected a number or a tensor of one element, got shape {list(num_items.shape)}"
            )
        if num_items.dtype not in (*INDEX_DTYPES, *PROBABILITY_DTYPES):
            raise TypeError(f"num_items: expected an integer or floating dtype, got {num_items.dtype}")
    elif isinstance(num_items, Real):
        check_num_items_value(num_items)
    else:
        raise TypeError(f"num_items: expected a number or a tensor of one element, got {type(num_items).__name__}")


def check_num_items_value(value: float) -> None:
    # torch.compile can compare a symbolic number, but cannot call math.isfinite on it.
    if not 0 < value < math.inf:
        raise ValueError(f"num_items: expected a finite number > 0, got {value!r}")
