"""torch.compile of a network's blocks: one compilation for each shape of block, however many layers have it."""

from __future__ import annotations

from types import FunctionType, MethodType

import torch
from torch import nn


def compile_blocks(network: nn.Module, block_type: type[nn.Module], backend: str = "inductor") -> int:
    """Have every block of `network` run compiled; its parameters and names stay.

    A whole family compiled at once would take minutes, for the same few blocks over and over.

    Args:
        block_type: what is compiled, with all that is in it.
        backend: of torch.compile.

    Returns:
        The number of shapes, each of which will be compiled when it first runs (in training, in evaluation).
    """
    compiled = {}
    for block in network.modules():
        if isinstance(block, block_type):
            shape = repr(block)
            if shape not in compiled:
                compiled[shape] = torch.compile(_own_code(type(block).forward), dynamic=False, backend=backend)
            block.forward = MethodType(compiled[shape], block)
    return len(compiled)


def _own_code(function: FunctionType) -> FunctionType:
    """A copy: torch.compile keeps what it compiled by code, and gives up after a few shapes of the same."""
    code, names = function.__code__.replace(), function.__globals__
    return FunctionType(code, names, function.__name__, function.__defaults__, function.__closure__)
