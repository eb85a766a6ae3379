"""BatchNorm, alone or with residual and ReLU: one op in each direction in training, else plain PyTorch.

The CPU kernels (csrc/cpu/norm_relu) and the Triton kernels for CUDA (kernels/norm_relu) implement the ops. On the CPU,
evaluation without gradients has an op too.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn import functional

from oekd_fast import native
from oekd_fast.common.fake_ops import on_one_device
from oekd_fast.common.op_errors import raising_value_error
from oekd_fast.layers.derivatives import raise_for_second_derivative
from oekd_fast.layers.running_statistics import collected, update
from oekd_fast.layers.unmodified import evaluates_on_cpu, is_unmodified, records_plain_layers

# x, residual, y and their gradients are [B, C, H, W], all float32 or all bfloat16; y, dx and dresidual are contiguous
# if x is on the CPU, contiguous and not channels_last, and else channels_last. All other tensors are float32 [C]. All
# arithmetic is in float32 or float64, so that results in bfloat16 are those for the same maps in float32, rounded.
# variance is unbiased, as for running statistics; norm_relu_with normalises by a given mean and variance. In backward,
# y is None if there was no residual, and dresidual has shape [0] if residual_grad is false. Without relu there is no
# residual. isa names an instruction set of `native.isa_names()`; "auto" is the widest. The kernels for CUDA ignore it.
_library = torch.library.Library("oekd_fast", "FRAGMENT")
_library.define(
    'norm_relu(Tensor x, Tensor weight, Tensor bias, Tensor? residual, float eps, bool relu=True, *, str isa="auto")'
    " -> (Tensor y, Tensor mean, Tensor variance, Tensor rstd)"
)
_library.define(
    "norm_relu_with(Tensor x, Tensor weight, Tensor bias, Tensor? residual, Tensor mean, Tensor variance, float eps, "
    'bool relu=True, *, str isa="auto") -> Tensor'
)
_library.define(
    "norm_relu_backward(Tensor dy, Tensor x, Tensor? y, Tensor weight, Tensor bias, Tensor mean, Tensor rstd, "
    'bool residual_grad, bool relu=True, *, str isa="auto") '
    "-> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dresidual)"
)


def _layout(x: Tensor) -> torch.memory_format:
    """Return the layout that the ops compute in for the map `x`."""
    planar = x.device.type != "cuda" and x.is_contiguous() and not x.is_contiguous(memory_format=torch.channels_last)
    return torch.contiguous_format if planar else torch.channels_last


@on_one_device
def _fake(x, weight, bias, residual, eps, relu=True, *, isa="auto"):
    mean, variance, rstd = (x.new_empty(x.shape[1], dtype=torch.float32) for _ in range(3))
    return torch.empty_like(x, memory_format=_layout(x)), mean, variance, rstd


@on_one_device
def _fake_with(x, weight, bias, residual, mean, variance, eps, relu=True, *, isa="auto"):
    return torch.empty_like(x, memory_format=_layout(x))


@on_one_device
def _fake_backward(dy, x, y, weight, bias, mean, rstd, residual_grad, relu=True, *, isa="auto"):
    dx, dweight, dbias, _ = _fake(x, weight, bias, None, 0.0)
    dresidual = torch.empty_like(dx) if residual_grad else x.new_empty(0)
    return dx, dweight, dbias, dresidual


def _register_triton(op: str) -> None:
    """Register the Triton kernels of `op` for CUDA; they are loaded at their first call, which takes a second."""

    def run(*args, **kwargs):
        return getattr(import_module("oekd_fast.kernels.norm_relu.launch"), op)(*args, **kwargs)

    _library.impl(op, run, "CUDA")


_register_triton("norm_relu")
_register_triton("norm_relu_backward")
torch.library.register_fake("oekd_fast::norm_relu", _fake, lib=_library)
torch.library.register_fake("oekd_fast::norm_relu_with", _fake_with, lib=_library)
torch.library.register_fake("oekd_fast::norm_relu_backward", _fake_backward, lib=_library)
_forward_op = raising_value_error(torch.ops.oekd_fast.norm_relu)
_with_op = raising_value_error(torch.ops.oekd_fast.norm_relu_with)
_backward_op = raising_value_error(torch.ops.oekd_fast.norm_relu_backward)
_HAS_TRITON = find_spec("triton") is not None


def norm_relu(norm: nn.Module, x: Tensor, residual: Tensor | None = None, *, fused: bool = False) -> Tensor:
    """Return ``relu(norm(x) + residual)``.

    Args:
        norm: layer from [B, C, H, W] to the same shape. The op replaces an unmodified ``torch.nn.BatchNorm2d`` only.
            Other layers, such as the ``SyncBatchNorm`` or ``Identity`` that a library put in its place, are called.
        x: input map [B, C, H, W].
        residual: map to add before the ReLU, of a shape that broadcasts to that of `x`.
        fused: whether to use one op for forward and one for backward where they support the call. They need training
            mode or, on the CPU, evaluation without gradients, maps that are all float32 or, as under autocast, all
            bfloat16, affine parameters and running statistics in float32, and a momentum. On the CPU, they need the
            compiled kernels, and maps are channels_last or contiguous; on CUDA, they need Triton and compute
            capability 8.0, and maps are channels_last. Other calls use plain PyTorch. The output has the layout of
            `x`. The fused form can be differentiated once.

    Raises:
        ValueError: `x` does not have four dimensions, or has one value for each channel in training mode.
    """
    if fused and _supports(norm, x, residual):
        return _run(norm, x, residual, relu=True)
    y = _plain(norm, x)
    if residual is not None:
        return torch.relu_(y + residual)
    # BatchNorm returns a new map. Another layer may return its input, and a hook may keep the output.
    return torch.relu_(y) if is_unmodified(norm, nn.BatchNorm2d) else torch.relu(y)


def norm_alone(norm: nn.Module, x: Tensor, *, fused: bool = False) -> Tensor:
    """Return ``norm(x)``; arguments and errors are those of `norm_relu`."""
    return _run(norm, x, None, relu=False) if fused and _supports(norm, x, None) else _plain(norm, x)


def _run(norm: nn.BatchNorm2d, x: Tensor, residual: Tensor | None, *, relu: bool) -> Tensor:
    if not norm.training:
        statistics = norm.running_mean, norm.running_var
        return _with_op(x, norm.weight, norm.bias, residual, *statistics, norm.eps, relu)
    y, mean, variance = _NormReLU.apply(x, norm.weight, norm.bias, residual, norm.eps, relu)
    update(norm, mean, variance)
    return y


def _plain(norm: nn.Module, x: Tensor) -> Tensor:
    """Return ``norm(x)``, and leave counting the batch to `update` if that counts those of all layers together."""
    if (
        collected() is None
        or not (is_unmodified(norm, nn.BatchNorm2d) and norm.training and x.dim() == 4)
        or not norm.track_running_stats
        or norm.momentum is None  # the layer reads its number of batches
    ):
        return norm(x)
    statistics = norm.running_mean, norm.running_var
    y = functional.batch_norm(x, *statistics, norm.weight, norm.bias, True, norm.momentum, norm.eps)
    update(norm)
    return y


def _supports(norm: nn.Module, x: Tensor, residual: Tensor | None) -> bool:
    return (
        is_unmodified(norm, nn.BatchNorm2d)
        and (norm.training or evaluates_on_cpu(x))
        and not records_plain_layers()
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and norm.weight.dtype == norm.running_mean.dtype == torch.float32
        and _supports_map(x)
        and x.numel() > (x.shape[1] if norm.training else 0)
        and (residual is None or (_supports_map(residual) and _is_like(residual, x)))
    )


def _supports_map(x: Tensor) -> bool:
    return (
        isinstance(x, Tensor)  # torch.fx passes a proxy
        and x.dim() == 4
        and x.dtype in (torch.float32, torch.bfloat16)
        and (x.is_contiguous(memory_format=torch.channels_last) or (x.device.type == "cpu" and x.is_contiguous()))
        and _has_kernels(x)
    )


def _has_kernels(x: Tensor) -> bool:
    if x.device.type == "cpu":
        return native.why_missing() is None
    # The kernels for CUDA count rows in 32 bits.
    return x.device.type == "cuda" and _HAS_TRITON and x.numel() < x.shape[1] << 30 and _runs_triton(x.device)


@cache
def _runs_triton(device: torch.device) -> bool:
    # FakeTensorMode has CUDA tensors without a GPU.
    return not torch.cuda.is_available() or torch.cuda.get_device_capability(device) >= (8, 0)


def _is_like(residual: Tensor, x: Tensor) -> bool:
    return residual.shape == x.shape and residual.dtype == x.dtype


class _NormReLU(torch.autograd.Function):
    """The fused op and its backward.

    Saves the input, mean and rstd for backward, and the output only if there is a residual: without one, backward
    computes again from the input where the output was 0.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, residual, eps, relu):
        y, mean, variance, rstd = _forward_op(x, weight, bias, residual, eps, relu)
        ctx.relu = relu
        ctx.save_for_backward(x, None if residual is None else y, weight, bias, mean, rstd)
        ctx.mark_non_differentiable(mean, variance)
        ctx.set_materialize_grads(False)
        return y, mean, variance

    @staticmethod
    def backward(ctx, dy, *unused):
        if dy is None:
            return None, None, None, None, None, None
        raise_for_second_derivative("norm_relu", "fused", "use_fused_norms")
        needed = ctx.needs_input_grad[:4]
        grads = _backward_op(dy, *ctx.saved_tensors, needed[3], ctx.relu)
        return *(grad if wanted else None for grad, wanted in zip(grads, needed, strict=True)), None, None
