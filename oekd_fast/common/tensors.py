"""Checks and digests of the values of tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first of `tensors` that holds NaN or infinity; None if there is none.

    Waits once for the device of the tensors.
    """
    names = [name for name, tensor in tensors.items() if tensor.is_floating_point() or tensor.is_complex()]
    if not names:
        return None
    finite = [torch.isfinite(tensors[name]).all() for name in names]
    flags = torch.stack([flag.to(finite[0].device) for flag in finite]).tolist()
    return next((name for name, flag in zip(names, flags, strict=True) if not flag), None)


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of the names, dtypes, shapes and bits of `tensors`, in their order: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
