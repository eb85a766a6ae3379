"""What types of devices can do."""

from __future__ import annotations

import torch


def has_float64(device: torch.device) -> bool:
    """Return whether float64 tensors on `device` are known to work; MPS has none."""
    return device.type in ("cpu", "cuda")
