"""3x3 convolutions with few channels: one CPU op in each direction in training on AVX2, else plain PyTorch.

Scaled students have 19, 9 or 3 channels, for instance, which libraries round up to whole vectors of channels. The CPU
ops vectorise along pixels instead, so no channels are added.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from oekd_fast import native

# x, y and their gradients are float32 [B, C, H, W]; y and dx are channels_last, dweight is contiguous. The padding is
# half the side of the filter. dx and dweight have shape [0] if they are not requested. isa names an instruction set of
# `native.isa_names()`; "auto" is the widest.
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

# The rule below takes only shapes that were measured to be faster on AVX2, where a training step gains 11 %
# (bench/results: direct_conv_avx2_cpu.json, direct_conv_step_avx2_cpu.json). On AVX-512 a step gained less than 5 %
# (direct_conv_avx512_cpu.json), and the baseline was not measured, so both use plain PyTorch.
_ISA = "avx2"
MOST_CHANNELS = 25  # in and out
_VECTOR = 8  # libraries pad channels to a multiple of this
_LEAST_PADDING = 1.4  # factor by which that increases the number of multiplications
# Output rows that are narrower than _WIDE pixels use vectors less well, so one side must have few channels there.
_WIDE, _LEAST_WIDTH = 16, 6
_FEW_CHANNELS = 12


class DirectConv2d(nn.Conv2d):
    """A 3x3 convolution without bias and with padding 1, with the parameters of ``torch.nn.Conv2d``.

    Attributes:
        direct: whether to use one op for forward and one for backward where they were measured to be faster. That needs
            the native extension, a processor with AVX2 and without AVX-512, training mode, float32 channels_last maps,
            stride 1 or 2, at most 25 channels in and out, and numbers of channels that are far from multiples of 8.
            Other calls use plain PyTorch. The direct form can be differentiated once.
    """

    direct = False

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        padded = [-(-channels // _VECTOR) * _VECTOR for channels in (in_channels, out_channels)]
        self._faster = (
            native.isa() == _ISA
            and stride in (1, 2)
            and max(in_channels, out_channels) <= MOST_CHANNELS
            and padded[0] * padded[1] >= _LEAST_PADDING * in_channels * out_channels
        )
        self._least_width = stride * (_LEAST_WIDTH if min(in_channels, out_channels) <= _FEW_CHANNELS else _WIDE)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output [B, out_channels, ceil(H / stride), ceil(W / stride)] for `x` [B, in_channels, H, W]."""
        if self.takes(x):
            return _DirectConv.apply(x, self.weight, self.stride[0])
        return super().forward(x)

    def takes(self, x: Tensor) -> bool:
        """Return whether `forward` uses the ops for `x`."""
        return (
            self.direct
            and self._faster
            and self.training
            and x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and x.is_contiguous(memory_format=torch.channels_last)
            and x.shape[3] >= self._least_width
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
                "call use_direct_convs(module, False) for a second derivative"
            )
        needed = ctx.needs_input_grad[:2]
        grads = torch.ops.oekd_fast.direct_conv_backward(dy, *ctx.saved_tensors, ctx.stride, *needed)
        return *(grad if wanted else None for grad, wanted in zip(grads, needed, strict=True)), None
