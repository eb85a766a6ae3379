"""Optimizer and learning-rate schedule of a run."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch.optim import Optimizer

from oekd_fast.config import TrainConfig
from oekd_fast.ensemble import StudentEnsemble


def build_optimizer(config: TrainConfig, ensemble: StudentEnsemble) -> Optimizer:
    """SGD with Nesterov momentum, or Adam; the adapters are a group of their own, at `adapter_rate`."""
    groups = [{"params": list(ensemble.network_parameters()), "lr": config.peak_rate}]
    adapters = list(ensemble.adapter_parameters())
    if adapters:
        groups.append({"params": adapters, "lr": config.peak_rate * config.adapter_rate})
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, weight_decay=config.weight_decay, fused=True)
    return torch.optim.SGD(
        groups,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=config.weight_decay,
        # Fused SGD leaves its momentum uninitialised when loss scaling skips the first step (seen in torch 2.13).
        fused=config.precision != "fp16",
    )


class RateSchedule:
    """Sets every group's learning rate before each step; its state is the number of steps done.

    Unlike torch's schedulers it does not mind a step that loss scaling skipped.
    """

    def __init__(self, config: TrainConfig, optimizer: Optimizer, steps_per_epoch: int) -> None:
        self._factor = partial(rate_factor, config, steps_per_epoch)
        self._optimizer = optimizer  # not its groups: loading a state replaces them
        self._peaks = [group["lr"] for group in optimizer.param_groups]
        self._set(0)

    def step(self) -> None:
        self._set(self._steps + 1)

    def state_dict(self) -> dict[str, int]:
        return {"steps": self._steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._set(state["steps"])

    def _set(self, steps: int) -> None:
        self._steps = steps
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * self._factor(steps)


def rate_factor(config: TrainConfig, steps_per_epoch: int, step: int) -> float:
    """The learning rate of step `step` (from 0) as a share of the peak."""
    total = config.epochs * steps_per_epoch
    warmup = config.warmup_epochs * steps_per_epoch
    rise = min(1.0, (step + 1) / warmup) if warmup > 0 else 1.0
    done = step / total
    if config.schedule == "cosine":
        return rise * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    return rise * config.decay ** sum(done >= milestone for milestone in config.milestones)
