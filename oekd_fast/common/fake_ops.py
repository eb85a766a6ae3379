"""Fake implementations of ops: functions that compute the shapes and dtypes of results."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from torch import Tensor


def on_one_device(fake: Callable) -> Callable:
    """Wrap a fake implementation, so that tensors on different devices raise ValueError.

    PyTorch calls the fake implementation also if only one of the tensors is on the meta device. The results would then
    be uninitialised memory on the device of the others.

    Args:
        fake: function whose parameters have the names of the op's arguments.
    """
    names = [name for name, p in inspect.signature(fake).parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]

    @wraps(fake)
    def checked(*args, **kwargs):
        tensors = _tensors(dict(zip(names, args, strict=False)) | kwargs)
        like, first = next(tensors, ("", None))
        for name, tensor in tensors:
            if tensor.device != first.device:
                raise ValueError(f"{name}: expected device {first.device} as {like}, got {tensor.device}")
        return fake(*args, **kwargs)

    return checked


def _tensors(arguments: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, list | tuple):
            yield from ((f"{name}[{j}]", item) for j, item in enumerate(value) if isinstance(item, Tensor))
