"""Copies of modules on the meta device."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

_M = TypeVar("_M", bound=nn.Module)


def meta_copy(module: _M, *, buffers: bool = True) -> _M:
    """Return a copy of `module` whose parameters and buffers are on the meta device, without copying their memory.

    Args:
        module: a module on any device, which stays as it is.
        buffers: False keeps copies of the buffers that are not in the state dict where they are, so that the copy
            computes once it has a state dict.
    """
    saved = set(module.state_dict()) if not buffers else None
    memo: dict[int, object] = {}
    for name, tensor in [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]:
        if saved is not None and name not in saved:
            continue
        on_meta = torch.empty_like(tensor, device="meta", requires_grad=False)
        if isinstance(tensor, nn.Parameter):
            on_meta = nn.Parameter(on_meta, tensor.requires_grad)
        memo.setdefault(id(tensor), on_meta)
    return copy.deepcopy(module, memo)
