"""The bandwidth of a large copy on the device, to which kernels that only move bytes are compared."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..gpu_timing import in_turn

BYTES = {"2 GB": 2 * 10**9, "256 MB": 256 * 10**6}  # of the source


def keys(quick: bool = False) -> list[str]:
    return ["2 GB"] if quick else list(BYTES)


def measure(key: str, emit: Callable[[dict], None], deadline: float, quick: bool, device: str = "cuda") -> None:
    """Time a copy of `BYTES[key]` bytes; bytes read and bytes written both count."""
    source = torch.empty(BYTES[key] // 4, dtype=torch.float32, device=device).normal_()
    target = torch.empty_like(source)
    timing = in_turn({"copy": lambda: target.copy_(source)}, 0.5 if quick else 2.0)["copy"]
    moved = 2 * source.numel() * source.element_size()
    emit(
        {
            "bytes": moved,
            "device_ms": timing.as_dict(),
            "gigabytes_per_second": round(moved / timing.median / 1e6, 1),
        }
    )
