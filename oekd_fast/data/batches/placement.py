"""Choose whether the images of a split are kept on the device or on the host during training."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from oekd_fast.data.batches.base import Batches, DeviceBatches
from oekd_fast.data.batches.prefetch import HostBatches
from oekd_fast.data.dataset import AnySplit, Split

Placement = Literal["auto", "device", "host", "stream"]

# Share of the device's free memory; the rest is for weights and activations, which are allocated later.
SHARE_FOR_A_SPLIT = 0.5


def place(
    split: AnySplit, device: torch.device | str, placement: Placement = "auto", *, name: str
) -> tuple[Batches, str | None]:
    """Make batches of `split` for steps on `device`.

    Args:
        split: split to serve. A lazy split is always prefetched.
        device: device of the training steps.
        placement: "device" keeps the images on the device and "host" prefetches them from host memory. "auto" keeps
            them on the device if they take at most half of its free memory. "stream" prefetches, whether images are
            read from disk or are in memory (as the digits are).
        name: name of the split, for the note.

    Returns:
        The batches, and a note that says why they are not on the device, or None if they are where they should be.

    Raises:
        ValueError: `placement` is unknown.
    """
    if placement not in get_args(Placement):
        raise ValueError(f"placement: expected one of {', '.join(get_args(Placement))}, got {placement!r}")
    device = torch.device(device)
    if not isinstance(split, Split) or placement in ("host", "stream"):
        return HostBatches(split, device), None
    size = split.images.numel()
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    if placement == "auto" and free is not None and size > SHARE_FOR_A_SPLIT * free:
        reason = f"{name}: {_gigabytes(size)} take more than half of the {_gigabytes(free)} free on {device}"
    else:
        try:
            return DeviceBatches(split, device), None
        except torch.OutOfMemoryError:
            where = str(device) if free is None else f"{device}, where {_gigabytes(free)} are free"
            reason = f"{name}: {_gigabytes(size)} do not fit on {where}"
    return HostBatches(split, device), f"{reason}: prefetched from host memory"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
