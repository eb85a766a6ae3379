"""The options of the ensemble distillation loss, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

from torch import Tensor

REDUCTIONS = ("mean", "sum")
MIXES = ("logits", "probabilities")
DEVICE_VALUES = ("temperature", "ce_weight", "kd_weight", "ensemble_ce_weight")  # fields that may be tensors


@dataclass(frozen=True)
class KDOptions:
    """What the loss computes; see :func:`oekd_fast.ensemble_kd_loss` for the meaning of each field.

    Defaults are the paper's (section 4: alpha = 0.7, gamma = 0.15, T = 2). Temperature and weights may be tensors of
    one element, which are held, not copied: each call of the loss takes what they hold then. Their values are looked
    at where they are used. So it is with ``mixing``, floating [S, S], or [S, S + 1] beside an external teacher.

    Raises:
        TypeError: a field that must be a number is none; a tensor of a dtype that is not floating.
        ValueError: temperature not finite or <= 0, a weight not finite, label_smoothing outside [0, 1],
            reduction or mixes unknown, a tensor not of one element, mixing not a matrix or with an attached ensemble,
            mixes without mixing.
    """

    temperature: float | Tensor = 2.0
    ce_weight: float | Tensor = 0.7
    kd_weight: float | Tensor = 0.15
    detach_ensemble: bool = True
    label_smoothing: float = 0.0
    ignore_index: int = -100
    reduction: str = "mean"
    ensemble_ce_weight: float | Tensor = 0.0
    mixing: Tensor | None = None
    mixes: str = "logits"

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
        if self.mixes not in MIXES:
            raise ValueError(f"mixes: expected one of {MIXES}, got {self.mixes!r}")
        if self.mixing is not None:
            _check_mixing(self.mixing)
            if not self.detach_ensemble:
                raise ValueError("mixing: expected detach_ensemble=True beside it, got detach_ensemble=False")
        elif self.mixes != "logits":
            raise ValueError(f"mixes: expected mixing beside {self.mixes!r}, got mixing None")

    @property
    def ensemble_learns(self) -> bool:
        """Whether the ensemble's cross-entropy is part of the loss; what a tensor holds is not looked at."""
        return isinstance(self.ensemble_ce_weight, Tensor) or self.ensemble_ce_weight != 0


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


def _check_mixing(mixing: object) -> None:
    if not isinstance(mixing, Tensor):
        raise TypeError(f"mixing: expected a tensor [S, S] or None, got {type(mixing).__name__}")
    if mixing.dim() != 2:
        raise ValueError(f"mixing: expected a matrix, a row for each student, got shape {list(mixing.shape)}")
    if not mixing.is_floating_point():
        raise TypeError(f"mixing: expected a floating dtype, got {mixing.dtype}")
