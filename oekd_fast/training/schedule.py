"""Values that change from step to step (learning rates, loss weights, temperature), kept on the device."""

from __future__ import annotations

import torch
from numpy import float32
from torch import Tensor

from oekd_fast.config.schedule import Ramp, ScheduleConfig
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.losses.calls import KDOptions


class Schedule:
    """A table of the scheduled values of every step, and the values of the current step.

    A step reads `learning_rate`, `adapter_rate`, `temperature`, `ce_weight`, `kd_weight`, `feature_weight`, `ema_share`
    and `copy_share`. These are float32 scalars on the device that keep their addresses, so that a replayed CUDA graph
    reads new values. Steps beyond the end of the training use the values of its last step.

    Args:
        config: options of the schedules.
        loss: final values of the temperature and of the weights of the logits' loss.
    """

    def __init__(self, config: TrainConfig, loss: KDOptions, steps_per_epoch: int, device: torch.device) -> None:
        self._peak = config.peak_rate
        self._factors = rate_factors(config, steps_per_epoch)

        def rises(form: Ramp) -> Tensor:
            return ramp(form, len(self._factors), config.ramp_epochs * steps_per_epoch)

        forms = (config.temperature_schedule, config.ce_schedule, config.kd_schedule)
        self._constant = config.ramp_epochs == 0 or all(form == "constant" for form in forms)
        self._of_loss = {
            name: float32(getattr(loss, name)).item() for name in ("temperature", "ce_weight", "kd_weight")
        }
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

    @property
    def of_loss(self) -> dict[str, float | Tensor]:
        """The temperature and the weights of the logits' loss, by name: numbers if all are constant, else scalars.

        Kernels use the powers of a temperature that they know in advance.
        """
        if self._constant:
            return dict(self._of_loss)
        return {name: getattr(self, name) for name in self._of_loss}

    def load(self) -> None:
        """Load the values of the next step, by work on the device alone; a CUDA graph can capture it."""
        row = self._cursor.clamp(max=len(self._table) - 1)
        self._values.copy_(self._table.index_select(0, row))
        self._cursor += 1

    def count(self) -> None:
        """Count a launched step on the host."""
        self._steps += 1

    @property
    def rate(self) -> float:
        """The learning rate of the next step, computed on the host."""
        return self._peak * self._factors[min(self._steps, len(self._factors) - 1)].item()

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that `load` changes."""
        return {"values": self._values, "cursor": self._cursor}

    def state_dict(self) -> dict[str, int]:
        return {"steps": self._steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._steps = state["steps"]
        self._cursor.fill_(self._steps)


def rate_factors(config: ScheduleConfig, steps_per_epoch: int) -> Tensor:
    """Return the learning rate of every step as a fraction of the peak, float64 [epochs * steps_per_epoch]."""
    if config.schedule == "one_cycle":
        return one_cycle(config.epochs * steps_per_epoch, config.rise)
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


def one_cycle(steps: int, rise: float) -> Tensor:
    """Return the learning rate of every step of a single cycle as a fraction of the peak, float64 [steps].

    The rate rises from 1/25 of the peak in the share `rise` of the steps, and falls to 1/250,000, each in half a cosine
    (Smith and Topin 2019, arXiv 1708.07120, with the constants of `torch.optim.lr_scheduler.OneCycleLR`). The momentum
    does not change.
    """
    step = torch.arange(steps, dtype=torch.float64)
    peak, last = rise * steps - 1, steps - 1
    risen = (step / peak).clamp(max=1.0) if peak > 0 else torch.ones_like(step)
    fallen = ((step - peak) / (last - peak)).clamp(min=0.0)  # peak is below last, since rise is below 1
    half = 0.5 * (1.0 - torch.cos(torch.pi * torch.stack((risen, fallen))))
    return torch.where(step <= peak, _between(1 / 25, 1.0, half[0]), _between(1.0, 1 / 250_000, half[1]))


def ema_shares(decay: float | None, steps: int) -> Tensor:
    """Return the share that the weights of each step have in their moving average, float64 [steps].

    The share is 1 - decay, with the decay of step t limited to (1 + t) / (10 + t); otherwise the initial weights would
    dominate the average of a short run.
    """
    if decay is None:
        return torch.zeros(steps, dtype=torch.float64)
    t = torch.arange(steps, dtype=torch.float64)
    return 1.0 - ((1 + t) / (10 + t)).clamp(max=decay)


def ramp(form: Ramp, steps: int, length: float) -> Tensor:
    """Return a factor that rises from 0 to 1 over `length` steps and stays 1, float64 [steps].

    "constant" is 1 in every step; "sigmoid" is exp(-5 (1 - t)^2) with t from 0 to 1 (Laine and Aila 2017, arXiv
    1610.02242; over 80 epochs in Lan, Zhu, Gong 2018, arXiv 1806.04606).
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
    """Return 1 for every `delay`-th step, the first included, and 0 for the others, float64 [steps].

    A delay of 0 gives 0 for all steps.
    """
    if delay == 0:
        return torch.zeros(steps, dtype=torch.float64)
    return (torch.arange(steps) % delay == 0).double()


def _between(start: float, end: float, share: Tensor) -> Tensor:
    return start + (end - start) * share
