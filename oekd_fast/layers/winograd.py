"""3x3 convolutions by Winograd's minimal filtering: one CPU op in each direction, else plain PyTorch.

F(2x2, 3x3) of Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308), computes
tiles of 2 x 2 outputs with 16 multiplications for each pair of channels instead of 36, and the gradients likewise. The
maps are channels_last, and vectors run along their channels (csrc/cpu/winograd).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from oekd_fast import native
from oekd_fast.common.fake_ops import on_one_device
from oekd_fast.common.op_errors import raising_value_error
from oekd_fast.layers.derivatives import raise_for_second_derivative
from oekd_fast.layers.plain_conv import is_plain_conv

LEAST_CHANNELS = 8  # in and out, of the ops

# x [B, C, H, W], y and dy [B, K, H, W] and weight [K, C, 3, 3] are float32, with C and K of at least LEAST_CHANNELS.
# The stride and the padding are 1. y and dx are channels_last; dweight is channels_last if weight is, and else
# contiguous. dx and dweight have shape [0] if they are not requested. isa names an instruction set of
# `native.isa_names()`; "auto" is the widest.
_library = torch.library.Library("oekd_fast", "FRAGMENT")
_library.define('winograd_conv(Tensor x, Tensor weight, *, str isa="auto") -> Tensor')
_library.define(
    "winograd_conv_backward(Tensor dy, Tensor x, Tensor weight, bool input_grad, bool weight_grad, "
    '*, str isa="auto") -> (Tensor dx, Tensor dweight)'
)


def _images(x: Tensor, channels: int) -> Tensor:
    """Return an empty channels_last map like `x` with another number of channels."""
    batch, _, height, width = x.shape
    strides = (height * width * channels, 1, width * channels, channels)
    return x.new_empty_strided((batch, channels, height, width), strides)


@on_one_device
def _fake(x, weight, *, isa="auto"):
    return _images(x, weight.shape[0])


@on_one_device
def _fake_backward(dy, x, weight, input_grad, weight_grad, *, isa="auto"):
    dx = _images(x, x.shape[1]) if input_grad else x.new_empty(0)
    if not weight_grad:
        return dx, x.new_empty(0)
    pixels = weight.is_contiguous(memory_format=torch.channels_last)
    return dx, _images(weight, weight.shape[1]) if pixels else weight.new_empty(weight.shape)


torch.library.register_fake("oekd_fast::winograd_conv", _fake, lib=_library)
torch.library.register_fake("oekd_fast::winograd_conv_backward", _fake_backward, lib=_library)
_forward_op = raising_value_error(torch.ops.oekd_fast.winograd_conv)
_backward_op = raising_value_error(torch.ops.oekd_fast.winograd_conv_backward)


def _flops(x_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
    """Return the operations of the convolution by its definition, as those of PyTorch's are counted."""
    batch, _, height, width = x_shape
    return 2 * batch * height * width * prod(weight_shape)


def _backward_flops(dy_shape, x_shape, weight_shape, input_grad, weight_grad, *args, **kwargs) -> int:
    return (input_grad + weight_grad) * _flops(x_shape, weight_shape)


register_flop_formula(torch.ops.oekd_fast.winograd_conv)(_flops)
register_flop_formula(torch.ops.oekd_fast.winograd_conv_backward)(_backward_flops)


@dataclass(frozen=True)
class Rule:
    """Shapes for which the ops were measured to be faster than PyTorch on an instruction set.

    Attributes:
        least_channels: Fewest channels in and out.
        least_wider: Fewest channels of the wider side. Maps with fewer do not fill vectors.
        most_channels: Most channels in and out.
        least_side: Least height and width. Tiles extend beyond maps of odd size.
        least_tiles: Fewest tiles of a batch, each of 2 x 2 outputs. Transforming the filter takes the same time for any
            number of tiles.
    """

    least_channels: int
    least_wider: int
    most_channels: int
    least_side: int
    least_tiles: int


# Measured with bench.ops.direct_conv and bench.step.direct_convs; bench/results has their tables
# winograd_avx2_cpu.json and winograd_step_avx2_cpu.json. AVX-512 and the baseline were not measured, so they use the
# other forms.
RULES = {"avx2": Rule(least_channels=12, least_wider=16, most_channels=128, least_side=6, least_tiles=512)}


def winograd_conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Return ``conv(x)`` by the ops, for a call that `takes` accepts.

    Args:
        conv: layer from [B, C, H, W] to [B, K, H, W].
        x: input map; a contiguous one is converted to channels_last.

    Returns:
        The output, channels_last. It can be differentiated once.
    """
    # The map is saved for backward in the layout in which it is used there again.
    return _WinogradConv.apply(x.contiguous(memory_format=torch.channels_last), conv.weight)


def takes(conv: nn.Module, x: Tensor) -> bool:
    """Return whether the ops support ``conv(x)`` and were measured to be faster.

    They need the compiled kernels, a processor with a rule in `RULES`, training mode or evaluation without gradients, a
    float32 map that is channels_last or contiguous, a 3x3 convolution with stride 1 and padding 1, without bias, and
    numbers of channels, pixels and tiles that the rule takes.
    """
    rule = _rule_here()
    if rule is None or not is_plain_conv(conv, x):
        return False
    outputs, channels, side, _ = conv.weight.shape
    batch, _, height, width = x.shape
    return (
        side == 3
        and conv.stride == (1, 1)
        and rule.least_channels <= min(channels, outputs)
        and rule.least_wider <= max(channels, outputs) <= rule.most_channels
        and min(height, width) >= rule.least_side
        and batch * -(-height // 2) * -(-width // 2) >= rule.least_tiles
    )


@lru_cache(maxsize=1)
def _rule_here() -> Rule | None:
    return RULES.get(native.isa())


class _WinogradConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return _forward_op(x, weight)

    @staticmethod
    def backward(ctx, dy):
        raise_for_second_derivative("winograd_conv", "Winograd", "use_winograd_convs")
        needed = ctx.needs_input_grad[:2]
        grads = _backward_op(dy, *ctx.saved_tensors, *needed)
        return tuple(grad if wanted else None for grad, wanted in zip(grads, needed, strict=True))
