"""What changes from step to step (learning rates, loss weights, temperature), as values on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from oekd_fast.config.schedule import Ramp, ScheduleConfig
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.losses.calls import KDOptions


class Schedule:
    """The values of every step of a training, and those of the step at hand.

    A step reads `learning_rate`, `adapter_rate`, `temperature`, `ce_weight`, `kd_weight`, `feature_weight`, `ema_share`
    and `copy_share` (fp32 scalars on the device that keep their addresses), so that a CUDA graph replays with new ones.

    Args:
        config: of the run.
        loss: of the logits.
        steps_per_epoch: of the training; steps after its last keep the last one's values.
    """

    def __init__(self, config: TrainConfig, loss: KDOptions, steps_per_epoch: int, device: torch.device) -> None:
        self._peak = config.peak_rate
        self._factors = rate_factors(config, steps_per_epoch)

        def rises(form: Ramp) -> Tensor:
            return ramp(form, len(self._factors), config.ramp_epochs * steps_per_epoch)

        columns = {
            "learning_rate": self._peak * self._factors,
            "adapter_rate": self._peak * config.adapter_rate * self._factors,
            "temperature": _between(config.temperature_start, loss.temperature, rises(config.temperature_schedule)),
            "ce_weight": loss.ce_weight * rises(config.ce_schedule),
            "kd_weight": loss.kd_weight * rises(config.kd_schedule),
            "feature_weight": config.loss_weights.feature_weight * rises(config.feature_schedule),
            "ema_share": ema_shares(config.ema_decay, len(self._factors)),
            "copy_share": copy_shares(config.codistillation_delay, len(self._factors)),
        }
        table = torch.empty(len(self._factors), len(columns), dtype=torch.float64)
        for column, values in zip(table.unbind(1), columns.values(), strict=True):
            column.copy_(torch.as_tensor(values))
        self._table = table.float().to(device)
        self._values = self._table[:1].clone()
        self._cursor = torch.zeros(1, dtype=torch.int64, device=device)
        self._steps = 0
        (
            self.learning_rate,
            self.adapter_rate,
            self.temperature,
            self.ce_weight,
            self.kd_weight,
            self.feature_weight,
            self.ema_share,
            self.copy_share,
        ) = self._values[0].unbind()

    def load(self) -> None:
        """On the device: the values of the next step. Legal in a CUDA graph."""
        row = self._cursor.clamp(max=len(self._table) - 1)
        self._values.copy_(self._table.index_select(0, row))
        self._cursor += 1

    def count(self) -> None:
        """On the host: a step was launched."""
        self._steps += 1

    @property
    def rate(self) -> float:
        """The learning rate of the next step, known without the device."""
        return self._peak * self._factors[min(self._steps, len(self._factors) - 1)].item()

    def state(self) -> dict[str, Tensor]:
        """What `load` changes."""
        return {"values": self._values, "cursor": self._cursor}

    def state_dict(self) -> dict[str, int]:
        return {"steps": self._steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._steps = state["steps"]
        self._cursor.fill_(self._steps)


def rate_factors(config: ScheduleConfig, steps_per_epoch: int) -> Tensor:
    """The learning rate of every step as a share of the peak, fp64 [epochs * steps_per_epoch]."""
    steps = torch.arange(config.epochs * steps_per_epoch, dtype=torch.float64)
    warmup = config.warmup_epochs * steps_per_epoch
    factors = ((steps + 1) / warmup).clamp(max=1.0) if warmup > 0 else torch.ones_like(steps)
    done = steps / len(steps)
    if config.schedule == "cosine":
        return factors * 0.5 * (1.0 + torch.cos(torch.pi * done))
    if config.schedule == "cyclic":  # Huang et al. 2017, eq. 2
        cycle = torch.arange(len(steps)) // steps_per_epoch * config.snapshots // config.epochs
        starts = torch.tensor([(cycle < i).sum() for i in range(config.snapshots)])
        lengths = torch.bincount(cycle, minlength=config.snapshots)
        return factors * 0.5 * (1.0 + torch.cos(torch.pi * (steps - starts[cycle]) / lengths[cycle]))
    if config.schedule == "exponential":
        return factors * config.decay ** torch.floor(steps / (config.decay_epochs * steps_per_epoch))
    for milestone in config.milestones:
        factors = factors * torch.where(done >= milestone, config.decay, 1.0)
    return factors


def ema_shares(decay: float | None, steps: int) -> Tensor:
    """What the weights after each step have of their moving average, fp64 [steps]: 1 - decay, more in the first steps.

    The decay of step t is at most (1 + t) / (10 + t), or the initial weights would linger in a short run.
    """
    if decay is None:
        return torch.zeros(steps, dtype=torch.float64)
    t = torch.arange(steps, dtype=torch.float64)
    return 1.0 - ((1 + t) / (10 + t)).clamp(max=decay)


def ramp(form: Ramp, steps: int, length: float) -> Tensor:
    """From 0 to 1 over `length` steps, and 1 from there, fp64 [steps]; constant: 1 at once.

    sigmoid is exp(-5 (1 - t)^2), t from 0 to 1 (Laine and Aila 2017; Lan, Zhu, Gong 2018: over 80 epochs).
    """
    if form == "constant" or length == 0:
        return torch.ones(steps, dtype=torch.float64)
    t = (torch.arange(steps, dtype=torch.float64) / length).clamp(max=1.0)
    if form == "linear":
        return t
    if form == "cosine":
        return 0.5 * (1.0 - torch.cos(torch.pi * t))
    return torch.exp(-5.0 * (1.0 - t).square())


def copy_shares(delay: int, steps: int) -> Tensor:
    """1 before every `delay`-th step, from the first on, else 0, fp64 [steps]; delay 0: always 0."""
    if delay == 0:
        return torch.zeros(steps, dtype=torch.float64)
    return (torch.arange(steps) % delay == 0).double()


def _between(start: float, end: float, share: Tensor) -> Tensor:
    return start + (end - start) * share
