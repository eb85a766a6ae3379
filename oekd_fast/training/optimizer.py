"""The optimizer of a training, with learning rates that are tensors on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from oekd_fast.config.optimizer import OptimizerConfig
from oekd_fast.family.ensemble import StudentEnsemble
from oekd_fast.training.channel_padding import padded_state, sliced_state, unpadded_shapes


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
    """The state of an optimizer as a `Stateful` part. In state dicts it has no padding of channels.

    Args:
        optimizer: the optimizer.
        module: holds the parameters that may be padded, among others.
    """

    def __init__(self, optimizer: Optimizer, module: nn.Module) -> None:
        self._optimizer = optimizer
        shapes = unpadded_shapes(module)
        # Shapes with and without padding by the position of the parameter, as torch numbers them in state dicts.
        self._padding = {
            position: (parameter.shape, shapes[parameter])
            for position, parameter in enumerate(self._parameters())
            if parameter in shapes
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the optimizer's state, named by the position of its parameter."""
        return {
            f"{position}.{name}": value
            for position, parameter in enumerate(self._parameters())
            for name, value in self._optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }

    def state_dict(self) -> dict[str, Any]:
        return self._each_padded(self._optimizer.state_dict(), sliced_state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state; the tensors of the learning rates stay, all others are replaced."""
        rates = [group["lr"] for group in self._optimizer.param_groups]
        self._optimizer.load_state_dict(self._each_padded(state, padded_state))
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    def _each_padded(self, state: dict[str, Any], change: Callable[..., dict[str, Any]]) -> dict[str, Any]:
        """Return the state dict `state` with the state of each padded parameter passed through `change`."""
        changed = {i: change(state["state"][i], *shapes) for i, shapes in self._padding.items() if i in state["state"]}
        return {**state, "state": {**state["state"], **changed}}
