"""The bandwidth of a large copy on the device, to which kernels that only move bytes are compared."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .context import Context

BYTES = {"copy 2 GB": 2 * 10**9, "copy 256 MB": 256 * 10**6}  # of the source
TINY = {"copy 4 MB": 4 * 10**6}


def keys(argument: str, tiny: bool) -> list[str]:
    return list(TINY if tiny else BYTES)


def measure(key: str, context: Context) -> Iterator[dict]:
    """Time a copy; bytes read and bytes written both count."""
    source = torch.empty((BYTES | TINY)[key] // 4, dtype=torch.float32, device=context.device.name).normal_()
    target = torch.empty_like(source)
    timing = context.device.time({"copy": lambda: target.copy_(source)}, 0.5)["copy"]
    moved = 2 * source.numel() * source.element_size()
    bandwidth = moved / timing.median / 1e6
    yield {"bytes": moved, "device_ms": timing.as_dict(), "gigabytes_per_second": round(bandwidth, 1)}


def lines(key: str, result: dict) -> Iterator[str]:
    yield f"{key}: {result['gigabytes_per_second']:.0f} GB/s"
