"""Where a split is kept while it is trained on: on the device, or on the host."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from oekd_fast.data.batches.base import Batches, DeviceBatches
from oekd_fast.data.batches.prefetch import HostBatches
from oekd_fast.data.dataset import AnySplit, Split

Placement = Literal["auto", "device", "host", "stream"]

# Of the device's free memory: the rest is for weights and activations, which come later.
SHARE_FOR_A_SPLIT = 0.5


def place(
    split: AnySplit, device: torch.device | str, placement: Placement = "auto", *, name: str
) -> tuple[Batches, str | None]:
    """Batches of `split` for steps on `device`.

    Args:
        split: a lazy one is always prefetched.
        device: where the steps run.
        placement: "device", "host" (prefetched from memory), or "auto": on the device if the images take at most half
            of what is free there. "stream" is about how a data set is loaded; what is in memory all the same, as the
            digits are, is prefetched from there.
        name: of the split, for the note.

    Returns:
        The batches, and one line that says why where they are not on the device although they were to be.
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
