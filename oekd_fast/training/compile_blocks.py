"""torch.compile of a network's blocks, once for each shape of block."""

from __future__ import annotations

from types import FunctionType, MethodType

import torch
from torch import nn


def compile_blocks(network: nn.Module, block_type: type[nn.Module], backend: str = "inductor") -> int:
    """Replace the forward of every block of `network` by a compiled one; parameters and their names stay.

    Blocks of the same shape share one compilation. Compiling a whole family at once would take minutes, because it
    compiles the same few blocks again and again.

    Args:
        block_type: class of the blocks.
        backend: argument of `torch.compile`.

    Returns:
        The number of shapes. Each is compiled when it first runs in training and when it first runs in evaluation.
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
    """Return a copy of `function` with code of its own.

    torch.compile caches by code object, and stops compiling after a few shapes of the same code.
    """
    code, names = function.__code__.replace(), function.__globals__
    return FunctionType(code, names, function.__name__, function.__defaults__, function.__closure__)
