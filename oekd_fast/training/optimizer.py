"""The optimizer of a training, with learning rates that are tensors on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from oekd_fast.config.optimizer import OptimizerConfig
from oekd_fast.family.ensemble import StudentEnsemble


def build_optimizer(
    config: OptimizerConfig, ensemble: StudentEnsemble, learning_rate: Tensor, adapter_rate: Tensor
) -> Optimizer:
    """Build SGD with Nesterov momentum, Adam or RMSProp; the adapters form a parameter group of their own.

    RMSProp has the decay of 0.9 of EfficientNet (Tan and Le 2019, arXiv 1905.11946, section 5.2), and the epsilon of
    1e-3 of its published code.

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
        # Buffers of zeros give the same first step. Torch would create them in that step: uninitialised if loss scaling
        # skips it (seen in torch 2.13), and in a way that cannot be captured.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


class OptimizerState:
    """The state of an optimizer as a `Stateful` part."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the optimizer's state, named by the position of its parameter."""
        parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        return {
            f"{position}.{name}": value
            for position, parameter in enumerate(parameters)
            for name, value in self._optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }

    def state_dict(self) -> dict[str, Any]:
        return self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state; the tensors of the learning rates stay, all others are replaced."""
        rates = [group["lr"] for group in self._optimizer.param_groups]
        self._optimizer.load_state_dict(state)
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
