"""Section of the config: the optimizer, its learning rate, and what else acts on a step's update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from oekd_fast.config.section import Section, at_least, nonnegative, positive, setting, within

OptimizerName = Literal["sgd", "adam", "rmsprop"]
DEFAULT_RATES: dict[OptimizerName, float] = {"sgd": 0.1, "adam": 0.001, "rmsprop": 0.256}


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Section):
    """Optimizer, learning rate and batch size."""

    optimizer: OptimizerName = "sgd"
    """Optimizer; sgd has Nesterov momentum."""
    learning_rate: float | None = setting(None, positive(), unset="0.1 for sgd, 0.001 for adam, 0.256 for rmsprop")
    """Peak learning rate."""
    batch_size: int = setting(128, at_least(1))
    """Images in a step; the last images of an epoch that do not fill a batch are left out."""
    micro_batches: int = setting(1, at_least(1))
    """Parts of a batch that are computed one after the other to save memory; their gradients are accumulated."""
    momentum: float = setting(0.9, nonnegative())
    """Momentum of sgd and rmsprop."""
    weight_decay: float = setting(1e-4, nonnegative())
    """Weight decay of all parameters."""
    adapter_rate: float = setting(0.5, nonnegative())
    """Learning rate of the feature adapters, critics and inlets as a multiple of the networks'."""
    clip_norm: float | None = setting(None, positive(), unset="no clipping")
    """Largest norm of a step's gradients over all parameters; larger gradients are scaled down."""
    ema_decay: float | None = setting(None, within("[0, 1)"), unset="no average")
    """Evaluate and save an exponential moving average of the weights with this decay per step."""

    @property
    def peak_rate(self) -> float:
        """The highest learning rate: `learning_rate`, or the optimizer's default if it is None."""
        return DEFAULT_RATES[self.optimizer] if self.learning_rate is None else self.learning_rate
