"""Convolutions with few channels: one CPU op in each direction on AVX2 and AVX-512, else plain PyTorch.

Scaled students have 19, 9 or 3 channels, for instance, which libraries round up to whole vectors of channels. The CPU
ops vectorise along pixels instead, so no channels are added. Their outputs are contiguous (NCHW), the layout that they
compute in, so that maps between two of them are not converted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import inf, prod

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula

from oekd_fast import native
from oekd_fast.common.fake_ops import on_one_device
from oekd_fast.common.op_errors import raising_value_error
from oekd_fast.layers.derivatives import raise_for_second_derivative
from oekd_fast.layers.plain_conv import is_plain_conv
from oekd_fast.layers.unmodified import is_unmodified

# x, y and their gradients are float32 [B, C, H, W]. y is contiguous, dx is channels_last if x is and else contiguous,
# dweight is contiguous. The padding is half the side of the filter. dx and dweight have shape [0] if they are not
# requested. isa names an instruction set of `native.isa_names()`; "auto" is the widest.
_library = torch.library.Library("oekd_fast", "FRAGMENT")
_library.define('direct_conv(Tensor x, Tensor weight, int stride, *, str isa="auto") -> Tensor')
_library.define(
    "direct_conv_backward(Tensor dy, Tensor x, Tensor weight, int stride, bool input_grad, bool weight_grad, "
    '*, str isa="auto") -> (Tensor dx, Tensor dweight)'
)


@on_one_device
def _fake(x, weight, stride, *, isa="auto"):
    height, width = (-(-size // stride) for size in x.shape[2:])
    return x.new_empty(x.shape[0], weight.shape[0], height, width)


@on_one_device
def _fake_backward(dy, x, weight, stride, input_grad, weight_grad, *, isa="auto"):
    pixels = x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if pixels else torch.contiguous_format
    dx = torch.empty_like(x, memory_format=layout) if input_grad else x.new_empty(0)
    dweight = torch.empty_like(weight, memory_format=torch.contiguous_format) if weight_grad else x.new_empty(0)
    return dx, dweight


torch.library.register_fake("oekd_fast::direct_conv", _fake, lib=_library)
torch.library.register_fake("oekd_fast::direct_conv_backward", _fake_backward, lib=_library)
_forward_op = raising_value_error(torch.ops.oekd_fast.direct_conv)
_backward_op = raising_value_error(torch.ops.oekd_fast.direct_conv_backward)


def _flops(x_shape, weight_shape, stride, *args, out_shape=None, **kwargs) -> int:
    batch, _, height, width = x_shape
    return 2 * batch * -(-height // stride) * -(-width // stride) * prod(weight_shape)


def _backward_flops(dy_shape, x_shape, weight_shape, stride, input_grad, weight_grad, *args, **kwargs) -> int:
    return (input_grad + weight_grad) * _flops(x_shape, weight_shape, stride)


register_flop_formula(torch.ops.oekd_fast.direct_conv)(_flops)
register_flop_formula(torch.ops.oekd_fast.direct_conv_backward)(_backward_flops)


@dataclass(frozen=True)
class Rule:
    """Shapes for which the ops were measured to be faster than PyTorch on an instruction set.

    Attributes:
        most_channels: Most channels in and out.
        vector: Libraries pad channels to a multiple of this.
        least_padding: Factor by which that increases the number of multiplications.
        few_channels: Most channels of the narrower side for which `least_width` holds; otherwise `wide` does. Narrow
            rows use vectors less well.
        least_width: Least width of an output, in pixels.
        wide: Least width of an output if both sides have more than `few_channels`.
        shares_pixels: Whether a map of the direct form that several networks read is converted to channels_last.
    """

    most_channels: int
    vector: int
    least_padding: float
    few_channels: int
    least_width: int
    wide: int
    shares_pixels: bool


# Measured with bench.ops.direct_conv and bench.step.direct_convs; bench/results has the tables direct_conv_*.json and
# direct_conv_step_*.json. The baseline was not measured, so it uses plain PyTorch. shares_pixels was compared in the
# step of ResNet-20 x 5 on AVX2, and is off elsewhere.
RULES = {
    "avx2": Rule(
        most_channels=25, vector=8, least_padding=1.4, few_channels=12, least_width=6, wide=16, shares_pixels=True
    ),
    "avx512": Rule(
        most_channels=25, vector=16, least_padding=1.33, few_channels=9, least_width=8, wide=16, shares_pixels=False
    ),
}


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """Build a 3x3 convolution without bias and with padding 1, the geometry of the direct form."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def direct_conv(conv: nn.Module, x: Tensor, *, every: int = 1, direct: bool = False) -> Tensor:
    """Return ``conv(x)``, or with ``every > 1`` ``conv(x[:, :, ::every, ::every])``.

    Args:
        conv: layer from [B, C, H, W] to [B, K, H', W']. The ops replace an unmodified ``torch.nn.Conv2d`` only; other
            layers are called.
        x: input map.
        every: distance between the rows and columns of `x` that are used.
        direct: whether to use one op for forward and one for backward where `takes` says that they are faster. The
            direct form can be differentiated once, and its output is contiguous.
    """
    if direct and takes(conv, x, every):
        return _DirectConv.apply(x, conv.weight, conv.stride[0] * every)
    if every == 1:
        return conv(x)
    if _takes_stride(conv, x):
        stride = [every * step for step in conv.stride]
        return functional.conv2d(x, conv.weight, conv.bias, stride, groups=conv.groups)
    # A pool of single pixels takes them; the gradient of a slice would not be channels_last.
    return conv(functional.avg_pool2d(x, kernel_size=1, stride=every))


def shared_layout(x: Tensor) -> Tensor:
    """Return `x`, a map of the direct form that several networks read, in the layout in which they read it fastest.

    Each network whose first convolution is PyTorch's would convert a contiguous map to channels_last, once in forward
    and once in backward.
    """
    rule = _rule_here()
    if rule is None or not rule.shares_pixels or x.dim() != 4 or x.device.type != "cpu":
        return x
    return x.contiguous(memory_format=torch.channels_last)


def _takes_stride(conv: nn.Module, x: Tensor) -> bool:
    """Return whether a larger stride of `conv` takes every n-th pixel, with right gradients.

    On the CPU, oneDNN's weight gradient of a strided 1x1 convolution with few channels in channels_last writes past its
    workspace (uxlfoundation/oneDNN issue 6035), which gives wrong results, hangs and crashes.
    """
    return (
        isinstance(x, Tensor)  # torch.fx passes a proxy
        and x.device.type != "cpu"
        and is_unmodified(conv, nn.Conv2d)
        and conv.kernel_size == (1, 1)
        and conv.padding in ((0, 0), "valid", "same")
    )


def takes(conv: nn.Module, x: Tensor, every: int = 1) -> bool:
    """Return whether the ops support the call of `direct_conv` and were measured to be faster.

    They need the compiled kernels, a processor with a rule in `RULES`, training mode or evaluation without gradients,
    float32 maps that are channels_last or contiguous, a 3x3 convolution as `conv3x3` builds it or a 1x1 convolution
    without padding, stride 1 or 2, and numbers of channels that the rule takes.
    """
    rule = _rule_here()
    if rule is None or not is_plain_conv(conv, x):
        return False
    weight, stride = conv.weight, conv.stride
    return (
        (weight.shape[2] == 3 and every == 1 or weight.shape[2] == 1)
        and stride in ((1, 1), (2, 2))
        and stride[0] * every <= 2
        and x.shape[3] >= stride[0] * every * _least_width(rule, *weight.shape[:2])
    )


@lru_cache(maxsize=1)
def _rule_here() -> Rule | None:
    return RULES.get(native.isa())


@lru_cache(maxsize=1024)
def _least_width(rule: Rule, outputs: int, channels: int) -> float:
    """Return the least width of an output for which the ops are faster; infinite if they are not for any width."""
    padded = [-(-count // rule.vector) * rule.vector for count in (channels, outputs)]
    if max(channels, outputs) > rule.most_channels or padded[0] * padded[1] < rule.least_padding * channels * outputs:
        return inf
    return rule.least_width if min(channels, outputs) <= rule.few_channels else rule.wide


class _DirectConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, stride):
        ctx.stride = stride
        ctx.save_for_backward(x, weight)
        return _forward_op(x, weight, stride)

    @staticmethod
    def backward(ctx, dy):
        raise_for_second_derivative("direct_conv", "direct", "use_direct_convs")
        needed = ctx.needs_input_grad[:2]
        grads = _backward_op(dy, *ctx.saved_tensors, ctx.stride, *needed)
        return *(grad if wanted else None for grad, wanted in zip(grads, needed, strict=True)), None
