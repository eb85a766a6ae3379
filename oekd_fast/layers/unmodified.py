"""Whether a layer of PyTorch computes what its class defines, so that an op may take its place."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module


def is_unmodified(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether `layer` is of the class `kind`, not a subclass, and has no hooks and no other forward.

    Libraries replace layers, and pruning, weight normalisation and offloading change them by hooks, by another class or
    by a forward of the instance. All of these need the layer to be called.
    """
    return (
        type(layer) is kind
        and "forward" not in layer.__dict__
        # The attributes that nn.Module.__call__ reads itself; PyTorch has no public form of this question.
        and not (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)
        and not torch_module._has_any_global_hook()
    )


def records_plain_layers() -> bool:
    """Return whether the call is traced or exported for use without this package."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting()


def evaluates_on_cpu(x: Tensor) -> bool:
    """Return whether ops for the CPU may take the place of layers in evaluation mode: gradients are off."""
    return not torch.is_grad_enabled() and x.device.type == "cpu"
