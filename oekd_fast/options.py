"""The options of the ensemble distillation loss, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

REDUCTIONS = ("mean", "sum")


@dataclass(frozen=True)
class KDOptions:
    """What the loss computes; see :func:`oekd_fast.ensemble_kd_loss` for the meaning of each field.

    Defaults are the paper's (section 4: alpha = 0.7, gamma = 0.15, T = 2).

    Raises:
        TypeError: a field that must be a number is none.
        ValueError: temperature not finite or <= 0, a weight not finite, label_smoothing outside [0, 1],
            reduction unknown.
    """

    temperature: float = 2.0
    ce_weight: float = 0.7
    kd_weight: float = 0.15
    detach_ensemble: bool = True
    label_smoothing: float = 0.0
    ignore_index: int = -100
    reduction: str = "mean"

    def __post_init__(self) -> None:
        for name in ("temperature", "ce_weight", "kd_weight", "label_smoothing"):
            value = getattr(self, name)
            if type(value) is not float and not isinstance(value, Real):  # the first test is the fast one
                raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature: expected a finite number > 0, got {self.temperature!r}")
        if not math.isfinite(self.ce_weight):
            raise ValueError(f"ce_weight: expected a finite number, got {self.ce_weight!r}")
        if not math.isfinite(self.kd_weight):
            raise ValueError(f"kd_weight: expected a finite number, got {self.kd_weight!r}")
        if not 0.0 <= self.label_smoothing <= 1.0:
            raise ValueError(f"label_smoothing: expected a number in [0, 1], got {self.label_smoothing!r}")
        if self.reduction not in REDUCTIONS:
            raise ValueError(f"reduction: expected one of {REDUCTIONS}, got {self.reduction!r}")
