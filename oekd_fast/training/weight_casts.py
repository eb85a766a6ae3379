"""Casts of weights for autocast: one operation for all weights of a network, and one for their gradients.

Autocast casts the weight of each layer by an operation of its own, and so does autograd with the gradient. The bits are
the same either way. `torch.nn.Module` has no public way to use a tensor with a history in place of a parameter, so this
module alone writes `Module._parameters`, as `torch.func.functional_call` does. That function looks up each parameter by
its name in each call, which would cost more than the casts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from oekd_fast.family.ensemble import StudentEnsemble
from oekd_fast.layers.unmodified import is_unmodified, records_plain_layers

# Layers whose weight and bias autocast casts, and which use them for nothing else.
_CAST_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_KNOWN_MODULES = ("torch.nn.", "oekd_fast.")


def cast_weights_together(ensemble: StudentEnsemble) -> None:
    """Have the base, each branch and the gate cast their weights together wherever they run under autocast.

    Parameters, state dicts and gradients stay as they are, in float32. Networks with modules that are neither of
    PyTorch nor of this package are left to autocast, because they may use the weights of their layers themselves.
    """
    for network in (ensemble.base, *ensemble.branches, *([] if ensemble.gate is None else [ensemble.gate])):
        if all(type(module).__module__.startswith(_KNOWN_MODULES) for module in network.modules()):
            casts = _WeightCasts([m for m in network.modules() if type(m) in _CAST_LAYERS])
            network.register_forward_pre_hook(casts.enter)
            network.register_forward_hook(casts.leave, always_call=True)


class _WeightCasts:
    """Puts casts in place of the weights of `layers` while a network runs under autocast."""

    def __init__(self, layers: list[nn.Module]) -> None:
        self._layers = layers
        self._replaced: list[tuple[nn.Module, str, nn.Parameter]] = []

    def enter(self, network: nn.Module, inputs: tuple[Any, ...]) -> None:
        if torch.compiler.is_compiling() or records_plain_layers():
            return
        slots = [
            (layer, name, parameter)
            for layer in self._layers
            if is_unmodified(layer, type(layer))
            for name, parameter in layer.named_parameters(recurse=False)
            if parameter.dtype == torch.float32
        ]
        device = slots[0][2].device.type if slots else "meta"
        # Not on the meta device, on which shapes are computed.
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            return
        dtype = torch.get_autocast_dtype(device)
        weights = list(dict.fromkeys(parameter for _, _, parameter in slots))  # layers may share one
        copies = dict(zip(weights, _Cast.apply(dtype, *weights), strict=True))
        for layer, name, parameter in slots:
            layer._parameters[name] = copies[parameter]
        self._replaced = slots

    def leave(self, network: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        for layer, name, parameter in self._replaced:
            layer._parameters[name] = parameter
        self._replaced = []


class _Cast(torch.autograd.Function):
    """Copies of float32 weights in another dtype, in the same layouts."""

    @staticmethod
    def forward(ctx, dtype, *weights):
        copies = [torch.empty_like(weight, dtype=dtype) for weight in weights]
        torch._foreach_copy_(copies, weights)
        ctx.mark_non_differentiable(
            *(c for c, wanted in zip(copies, ctx.needs_input_grad[1:], strict=True) if not wanted)
        )
        ctx.set_materialize_grads(False)
        return tuple(copies)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor | None):
        given = [grad for grad in grads if grad is not None]
        cast = [torch.empty_like(grad, dtype=torch.float32) for grad in given]
        if given:
            torch._foreach_copy_(cast, given)
        following = iter(cast)
        return None, *(None if grad is None else next(following) for grad in grads)
