"""Checks of the values of tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first of `tensors` that holds NaN or infinity; None if there is none.

    Reads the tensors on the host, which waits for their device.
    """
    return next((name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()), None)
