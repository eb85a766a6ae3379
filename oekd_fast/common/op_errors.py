"""Makes wrong arguments of the ops of the CPU kernels raise ValueError, with every version of torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch

_WRONG_ARGUMENT = re.compile(r"\w[\w\[\]]*: expected ")


def raising_value_error(op: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls `op`, and raises ``ValueError`` if an argument is wrong.

    The kernels throw ``std::invalid_argument``. Before torch 2.15, pybind11 translated it to ``ValueError``; since
    then torch itself makes it a ``RuntimeError`` (pull request 193451 of PyTorch). Such an error is recognized by its
    text, ``name: expected X, got Y``, which stays the same. Other errors pass unchanged.

    ``torch.compile`` and ``torch.export`` record `op` itself, so that their graphs raise what torch raises.

    Args:
        op: op in ``torch.ops.oekd_fast``.
    """

    def call(*args, **kwargs):
        if torch.compiler.is_compiling():
            return op(*args, **kwargs)
        try:
            return op(*args, **kwargs)
        except RuntimeError as error:
            if type(error) is not RuntimeError or not _WRONG_ARGUMENT.match(str(error)):
                raise
            raise ValueError(str(error)) from None

    return call
