"""Recognition of calls that PyTorch transforms or traces: torch.func, forward-mode AD, fake tensors, DTensor.

The compiled kernels read memory, so that they can neither carry tangents nor see batched values. The reference is
plain PyTorch, which every transform supports. This module is the only one that asks PyTorch's internals.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad


def in_torch_func() -> bool:
    """Whether a transform of ``torch.func`` is active: grad, vjp, jvp, vmap, functionalize and their compositions."""
    return torch._C._are_functorch_transforms_active()  # torch.compile evaluates it while it traces


def in_forward_ad() -> bool:
    """Whether a level of ``torch.autograd.forward_ad`` is active."""
    return forward_ad._current_level >= 0


def has_tangent(tensors: Iterable[Tensor | float | None]) -> bool:
    """Whether one of `tensors` is a dual tensor of ``torch.autograd.forward_ad``."""
    if not in_forward_ad():  # the usual case needs no look at each tensor
        return False
    return any(isinstance(t, Tensor) and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def is_batched(tensor: Tensor) -> bool:
    """Whether `tensor` stands for several, as upstream gradients do with ``is_grads_batched=True``."""
    if torch.compiler.is_compiling():
        return False
    return in_torch_func() or torch._C._functorch.is_legacy_batchedtensor(tensor)


def is_exporting() -> bool:
    """Whether ``torch.export`` records the call. Before torch 2.13 the public function is true in torch.compile too."""
    return torch.compiler._is_exporting_flag


def is_distributed(tensor: Tensor) -> bool:
    """Whether `tensor` is a DTensor, whose processes hold parts of it. Operators need a rule for each layout."""
    if type(tensor) is Tensor:  # the usual case is fast
        return False
    loaded = sys.modules.get("torch.distributed.tensor")  # by whoever made a DTensor
    return loaded is not None and isinstance(tensor, loaded.DTensor)


def hides_values(tensor: Tensor) -> bool:
    """Whether the host cannot read what `tensor` holds, because a transform or a tracer stands in for it."""
    if torch.compiler.is_compiling() or in_torch_func() or isinstance(tensor, FakeTensor):
        return True
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None  # make_fx


def is_graph_input(number: float) -> bool:
    """Whether the graph that is being compiled takes `number` as an input, so that it holds for other numbers too."""
    from torch.fx.experimental.symbolic_shapes import has_static_value  # takes a second, and tracing has loaded it

    return not has_static_value(number)
