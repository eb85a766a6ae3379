"""The optimizer of a run: fused, with learning rates that live on the device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from oekd_fast.config.optimizer import OptimizerConfig
from oekd_fast.family.ensemble import StudentEnsemble


def build_optimizer(
    config: OptimizerConfig, ensemble: StudentEnsemble, learning_rate: Tensor, adapter_rate: Tensor
) -> Optimizer:
    """SGD with Nesterov momentum, Adam, or RMSProp; the adapters are a group of their own.

    RMSProp is that of the paper's EfficientNets (Tan and Le 2019): decay 0.9, epsilon 1e-3.

    Args:
        learning_rate, adapter_rate: scalars on the device, read in every step.
    """
    groups = [{"params": list(ensemble.network_parameters()), "lr": learning_rate}]
    adapters = list(ensemble.adapter_parameters())
    if adapters:
        groups.append({"params": adapters, "lr": adapter_rate})
    if config.optimizer == "adam":
        capturable = learning_rate.device.type == "cuda"
        return torch.optim.Adam(groups, weight_decay=config.weight_decay, fused=True, capturable=capturable)
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(
            groups,
            alpha=0.9,
            eps=1e-3,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            foreach=True,
            capturable=learning_rate.device.type == "cuda",
        )
    optimizer = torch.optim.SGD(
        groups, momentum=config.momentum, nesterov=config.momentum > 0, weight_decay=config.weight_decay, fused=True
    )
    if config.momentum > 0:
        # From zeros the first step is the same; left to torch, the buffers stay uninitialised where loss scaling skips
        # the first step (seen in torch 2.13), and their first use cannot be captured.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def load_optimizer(optimizer: Optimizer, state: dict) -> None:
    """As `optimizer.load_state_dict`, but the learning rates stay the tensors that they are."""
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def optimizer_state(optimizer: Optimizer) -> dict[str, Tensor]:
    """Every tensor of the optimizer's state, named by the place of its parameter."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        f"{place}.{name}": value
        for place, parameter in enumerate(parameters)
        for name, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }
