"""Variants shared by the benchmarks of several ops."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

DTYPES = ("float32", "bfloat16", "float16")


def name_of(dtype: torch.dtype) -> str:
    """Return "float32" for torch.float32."""
    return str(dtype).removeprefix("torch.")


def compiled(function: Callable) -> Callable:
    """Compile `function` for one size. Earlier compilations are dropped: torch limits their number for a function."""
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)


def with_backward(loss: Callable[[], Tensor], leaves: Iterable[Tensor]) -> Callable[[], None]:
    """Return a call that computes the loss and the gradients of `leaves`, which have none before each call."""

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        loss().backward()

    return step
