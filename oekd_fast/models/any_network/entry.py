"""The projection from the map of the shared base to the channels that a student's first block takes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def select_channels(channels: int, kept: Tensor, device: torch.device) -> nn.Conv2d:
    """Return a 1x1 convolution without bias that selects the channels `kept` of maps [B, channels, H, W].

    Args:
        channels: channels of the map of the base.
        kept: their positions, int64 [channels of the student].
        device: device of the weights.
    """
    entry = nn.Conv2d(channels, len(kept), kernel_size=1, bias=False, device=device)
    with torch.no_grad():
        entry.weight.zero_()
        entry.weight[range(len(kept)), kept] = 1.0
    return entry
