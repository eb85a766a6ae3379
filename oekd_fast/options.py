"""The options of the ensemble distillation loss, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

from torch import Tensor

REDUCTIONS = ("mean", "sum")
DEVICE_VALUES = ("temperature", "ce_weight", "kd_weight")  # fields that may be tensors


@dataclass(frozen=True)
class KDOptions:
    """What the loss computes; see :func:`oekd_fast.ensemble_kd_loss` for the meaning of each field.

    Defaults are the paper's (section 4: alpha = 0.7, gamma = 0.15, T = 2). Temperature and weights may be tensors of
    one element, which are held, not copied: each call of the loss takes what they hold then. Their values are looked
    at where they are used.

    Raises:
        TypeError: a field that must be a number is none; a tensor of a dtype that is not floating.
        ValueError: temperature not finite or <= 0, a weight not finite, label_smoothing outside [0, 1],
            reduction unknown, a tensor not of one element.
    """

    temperature: float | Tensor = 2.0
    ce_weight: float | Tensor = 0.7
    kd_weight: float | Tensor = 0.15
    detach_ensemble: bool = True
    label_smoothing: float = 0.0
    ignore_index: int = -100
    reduction: str = "mean"

    def __post_init__(self) -> None:
        for name in DEVICE_VALUES:
            value = getattr(self, name)
            if isinstance(value, Tensor):
                _check_one_element(name, value)
            elif type(value) is not float and not isinstance(value, Real):  # the first test is the fast one
                raise TypeError(f"{name}: expected a number or a tensor of one element, got {type(value).__name__}")
            else:
                check_value(name, value)
        if type(self.label_smoothing) is not float and not isinstance(self.label_smoothing, Real):
            raise TypeError(f"label_smoothing: expected a number, got {type(self.label_smoothing).__name__}")
        if not 0.0 <= self.label_smoothing <= 1.0:
            raise ValueError(f"label_smoothing: expected a number in [0, 1], got {self.label_smoothing!r}")
        if self.reduction not in REDUCTIONS:
            raise ValueError(f"reduction: expected one of {REDUCTIONS}, got {self.reduction!r}")


def check_value(name: str, value: float) -> None:
    """The number of a field of ``DEVICE_VALUES``: raises ValueError where the loss would mean nothing."""
    positive = name == "temperature"
    if not math.isfinite(value) or (positive and value <= 0):
        raise ValueError(f"{name}: expected a finite number{' > 0' if positive else ''}, got {value!r}")


def _check_one_element(name: str, value: Tensor) -> None:
    if value.numel() != 1:
        raise ValueError(f"{name}: expected a number or a tensor of one element, got shape {list(value.shape)}")
    if not value.is_floating_point():
        raise TypeError(f"{name}: expected a floating dtype, got {value.dtype}")
