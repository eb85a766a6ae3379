"""Whether an op for the CPU may take the place of a convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from oekd_fast.layers.unmodified import evaluates_on_cpu, is_unmodified, records_plain_layers


def is_plain_conv(conv: nn.Module, x: Tensor) -> bool:
    """Return whether ``conv(x)`` is a convolution that an op for the CPU may compute.

    It is one of an unmodified ``torch.nn.Conv2d``, in training mode or evaluated without gradients. It has no bias,
    groups or dilation, is padded with half the side of its square filter, and takes a float32 map that is channels_last
    or contiguous, outside of autocast.
    """
    if not (is_unmodified(conv, nn.Conv2d) and isinstance(x, Tensor) and (conv.training or evaluates_on_cpu(x))):
        return False
    weight = conv.weight
    return (
        # Other libraries change these of a layer that exists, for dilated convolutions or fused norms for instance.
        conv.bias is None
        and conv.padding == (weight.shape[2] // 2, weight.shape[3] // 2)
        and weight.shape[2] == weight.shape[3]
        and conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and (x.is_contiguous(memory_format=torch.channels_last) or x.is_contiguous())
        and x.shape[1] == weight.shape[1]
        and not records_plain_layers()
    )
