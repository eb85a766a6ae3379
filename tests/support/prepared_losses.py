"""Prepared calls of the loss on the CPU, whose launches run in Triton's interpreter."""

import ctypes

import torch
from torch import Tensor

from oekd_fast.losses.prepared import PreparedLosses


def tensor_at(address: int, like: Tensor) -> Tensor:
    """Return a tensor with the dtype, shape and strides of `like` in the memory at `address`."""
    if like.numel() == 0:
        return torch.empty_like(like)
    last = sum((size - 1) * stride for size, stride in zip(like.shape, like.stride(), strict=True))
    buffer = (ctypes.c_char * ((last + 1) * like.element_size())).from_address(address)
    return torch.frombuffer(buffer, dtype=like.dtype).as_strided(like.shape, like.stride())


def interpret(launch, stream):
    """Return a function that runs an interpreted kernel, which takes tensors in place of addresses."""

    def value(given, planned):
        if isinstance(planned, tuple):
            return tuple(map(value, given, planned))
        return tensor_at(given, planned) if isinstance(planned, Tensor) and not isinstance(given, Tensor) else given

    def run(*given):
        arguments = {
            name: value(x, launch.arguments[name]) for name, x in zip(launch.kernel.arg_names, given, strict=True)
        }
        launch.kernel[(launch.programs,)](**arguments, **launch.options)

    return run


def interpreted_losses(capacity=8) -> PreparedLosses:
    return PreparedLosses("cpu", capacity, launcher=interpret)
