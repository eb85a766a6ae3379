"""Detection of modules that change their input in place where other students or returned maps share that input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class InPlaceError(RuntimeError):
    """Raised when a module of a branch changes a map in place that others still use.

    Attributes:
        where: the module, such as "blocks[1]".
    """

    def __init__(self, where: str) -> None:
        self.where = where
        super().__init__(
            f"{where}: expected modules that do not change their input, which other students or the returned maps "
            "share, got a change in place; use inplace=False, or operations without a trailing underscore"
        )

    def of_student(self, j: int) -> InPlaceError:
        """Return an error that names student `j` too, counted from 0."""
        return InPlaceError(f"student {j + 1}: {self.where}")


def change_count(x: Tensor) -> int:
    """Return how often `x` was changed in place; 0 where PyTorch does not count changes.

    Changes are not counted in inference mode, by torch.compile (see `call_on_shared`) and by torch.fx.
    """
    if torch.compiler.is_compiling() or not isinstance(x, Tensor) or x.is_inference():
        return 0
    return x._version


def call_on_shared(module: Callable[[Tensor], Any], x: Tensor, where: str) -> Any:
    """Return `module(x)`.

    Under torch.compile, `module` receives a copy of `x`, so that a change in place is right instead of refused. The
    compiler removes the copy if `module` does not change it.

    Args:
        module: what to call.
        x: map that is used elsewhere too.
        where: the name of `module` in the error.

    Raises:
        InPlaceError: `module` changed `x` in place.
    """
    if torch.compiler.is_dynamo_compiling():
        return module(x.clone())
    before = change_count(x)
    try:
        y = module(x)
    except InPlaceError:
        raise
    except RuntimeError as error:
        # PyTorch itself refuses to change the leaves at which the backward passes of a training step end.
        if x.is_leaf and x.requires_grad and changes_its_input(module, x):
            raise InPlaceError(where) from error
        raise
    if change_count(x) != before:
        raise InPlaceError(where)
    return y


@torch.no_grad()
def changes_its_input(module: Callable[[Tensor], Any], x: Tensor) -> bool:
    """Return whether `module` changes a map like `x` in place, by calling it with a copy."""
    copied = x.detach().clone()
    before = change_count(copied)
    try:
        module(copied)
    except InPlaceError:
        return True
    return change_count(copied) != before
