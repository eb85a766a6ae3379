"""Optimizer and learning-rate schedule of a run."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

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
    nesterov = config.momentum > 0
    return torch.optim.SGD(
        groups, momentum=config.momentum, nesterov=nesterov, weight_decay=config.weight_decay, fused=True
    )


def build_schedule(config: TrainConfig, optimizer: Optimizer, steps_per_epoch: int) -> LambdaLR:
    """A rate for every step; its state is the number of steps done."""
    return LambdaLR(optimizer, partial(rate_factor, config, steps_per_epoch))


def rate_factor(config: TrainConfig, steps_per_epoch: int, step: int) -> float:
    """The learning rate of step `step` (from 0) as a share of the peak."""
    total = config.epochs * steps_per_epoch
    warmup = config.warmup_epochs * steps_per_epoch
    rise = min(1.0, (step + 1) / warmup) if warmup > 0 else 1.0
    done = step / total
    if config.schedule == "cosine":
        return rise * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    return rise * config.decay ** sum(done >= milestone for milestone in config.milestones)
