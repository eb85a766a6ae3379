"""Convolutions of few channels: plain PyTorch, or one CPU op each way.

Scaled students have widths like 19, 9 or 3, which libraries round up to whole vectors of channels. The CPU ops run
along pixels, so that no width is rounded up.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from oekd_fast import native

# Maps are float32 [B, C, H, W]; y and dx are channels_last, dweight is contiguous. Padding is half the filter's side.
# A gradient that is not wanted is [0]. isa: as in dispatch.py.
_library = torch.library.Library("oekd_fast", "FRAGMENT")
_library.define('direct_conv(Tensor x, Tensor weight, int stride, *, str isa="auto") -> Tensor')
_library.define(
    "direct_conv_backward(Tensor dy, Tensor x, Tensor weight, int stride, bool input_grad, bool weight_grad, "
    '*, str isa="auto") -> (Tensor dx, Tensor dweight)'
)


def _fake(x, weight, stride, *, isa="auto"):
    height, width = (-(-size // stride) for size in x.shape[2:])
    return x.new_empty(x.shape[0], weight.shape[0], height, width).to(memory_format=torch.channels_last)


def _fake_backward(dy, x, weight, stride, input_grad, weight_grad, *, isa="auto"):
    dx = torch.empty_like(x, memory_format=torch.channels_last) if input_grad else x.new_empty(0)
    dweight = torch.empty_like(weight, memory_format=torch.contiguous_format) if weight_grad else x.new_empty(0)
    return dx, dweight


torch.library.register_fake("oekd_fast::direct_conv", _fake, lib=_library)
torch.library.register_fake("oekd_fast::direct_conv_backward", _fake_backward, lib=_library)

# Channels in and out up to which an instruction set's ops are faster than libraries, see bench/ops/direct_conv.py. The
# baseline copy was not measured.
_MOST_CHANNELS = {"avx2": 48, "avx512": 20}
_VECTOR = 8  # of channels that fill those, libraries waste nothing
_LEAST_WIDTH = 6


class DirectConv2d(nn.Conv2d):
    """A 3x3 convolution without bias, padded by 1; arguments and parameters of ``torch.nn.Conv2d``.

    Attributes:
        direct: one op forward and one backward, where they were measured to be faster: the native extension, float32
            maps in channels_last, up to 20 channels on an AVX-512 processor and 48 on one with AVX2, that do not all
            fill vectors of 8, stride 1 or 2. Plain PyTorch otherwise. The direct form is differentiable once.
    """

    direct = False

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        widths = in_channels, out_channels
        self._narrow = (
            stride in (1, 2)
            and max(widths) <= _MOST_CHANNELS.get(native.isa(), 0)
            and any(channels % _VECTOR for channels in widths)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] to [B, out_channels, ceil(H / stride), ceil(W / stride)]."""
        if self.takes(x):
            return _DirectConv.apply(x, self.weight, self.stride[0])
        return super().forward(x)

    def takes(self, x: Tensor) -> bool:
        """Whether `forward` of `x` would be direct."""
        return (
            self.direct
            and self._narrow
            and self.training
            and x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and x.is_contiguous(memory_format=torch.channels_last)
            and x.shape[3] >= _LEAST_WIDTH * self.stride[0]
        )


def use_direct_convs(module: nn.Module, enabled: bool = True) -> None:
    """Set `direct` of every `DirectConv2d` in `module`."""
    for part in module.modules():
        if isinstance(part, DirectConv2d):
            part.direct = enabled


class _DirectConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, stride):
        ctx.stride = stride
        ctx.save_for_backward(x, weight)
        return torch.ops.oekd_fast.direct_conv(x, weight, stride)

    @staticmethod
    def backward(ctx, dy):
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "DirectConv2d: the direct form is differentiable once, got create_graph=True; "
                "use_direct_convs(module, False) is differentiable twice"
            )
        needed = ctx.needs_input_grad[:2]
        grads = torch.ops.oekd_fast.direct_conv_backward(dy, *ctx.saved_tensors, ctx.stride, *needed)
        return *(grad if wanted else None for grad, wanted in zip(grads, needed, strict=True)), None
