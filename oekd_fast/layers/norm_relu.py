"""BatchNorm followed by ReLU, and what is added in between: plain PyTorch, or one CPU op each way in training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from oekd_fast import native

# Maps are float32 [B, C, H, W], the rest float32 [C]; y, dx and dresidual are channels_last.
# variance: unbiased, as running statistics take it. y: None where there was no residual; dresidual: [0] where unwanted.
# isa: as in dispatch.py.
_library = torch.library.Library("oekd_fast", "FRAGMENT")
_library.define(
    'norm_relu(Tensor x, Tensor weight, Tensor bias, Tensor? residual, float eps, *, str isa="auto")'
    " -> (Tensor y, Tensor mean, Tensor variance, Tensor rstd)"
)
_library.define(
    "norm_relu_backward(Tensor dy, Tensor x, Tensor? y, Tensor weight, Tensor bias, Tensor mean, Tensor rstd, "
    'bool residual_grad, *, str isa="auto") -> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dresidual)'
)


def _fake(x, weight, bias, residual, eps, *, isa="auto"):
    mean, variance, rstd = (x.new_empty(x.shape[1]) for _ in range(3))
    return torch.empty_like(x, memory_format=torch.channels_last), mean, variance, rstd


def _fake_backward(dy, x, y, weight, bias, mean, rstd, residual_grad, *, isa="auto"):
    dx, dweight, dbias, _ = _fake(x, weight, bias, None, 0.0)
    dresidual = torch.empty_like(dx) if residual_grad else x.new_empty(0)
    return dx, dweight, dbias, dresidual


torch.library.register_fake("oekd_fast::norm_relu", _fake, lib=_library)
torch.library.register_fake("oekd_fast::norm_relu_backward", _fake_backward, lib=_library)


class NormReLU(nn.BatchNorm2d):
    """relu(BatchNorm2d(x) [+ residual]); arguments, parameters and state of ``torch.nn.BatchNorm2d``.

    Attributes:
        fused: in training, one op forward and one backward, where they cover the call: the native extension, float32
            maps in channels_last on the CPU, affine parameters, running statistics with a momentum. Plain PyTorch
            otherwise. The fused form is differentiable once.
    """

    fused = False

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[B, C, H, W], and a residual of the same shape, to [B, C, H, W].

        Raises:
            ValueError: `x` is not of four dimensions, or has one value a channel in training.
        """
        if not (self.fused and self._covers(x, residual)):
            y = super().forward(x)
            return torch.relu_(y if residual is None else y + residual)
        self.num_batches_tracked.add_(1)
        y, mean, variance = _NormReLU.apply(x, self.weight, self.bias, residual, self.eps)
        torch._foreach_lerp_([self.running_mean, self.running_var], [mean, variance], self.momentum)
        return y

    def _covers(self, x: Tensor, residual: Tensor | None) -> bool:
        return (
            self.training
            and native.has_op("norm_relu")
            and self.affine
            and self.track_running_stats
            and self.momentum is not None
            and self.weight.dtype == self.running_mean.dtype == torch.float32
            and _covers_map(x)
            and x.numel() > x.shape[1]
            and (residual is None or (_covers_map(residual) and residual.shape == x.shape))
        )


def use_fused_norms(module: nn.Module, enabled: bool = True) -> None:
    """Set `fused` of every `NormReLU` in `module`."""
    for part in module.modules():
        if isinstance(part, NormReLU):
            part.fused = enabled


def _covers_map(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and x.is_contiguous(memory_format=torch.channels_last)


class _NormReLU(torch.autograd.Function):
    """Keeps its input, its output where there is a residual, and two numbers a channel.

    Without a residual, backward finds again from the input where the output was 0, and the output is not read.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, residual, eps):
        y, mean, variance, rstd = torch.ops.oekd_fast.norm_relu(x, weight, bias, residual, eps)
        ctx.save_for_backward(x, None if residual is None else y, weight, bias, mean, rstd)
        ctx.mark_non_differentiable(mean, variance)
        ctx.set_materialize_grads(False)
        return y, mean, variance

    @staticmethod
    def backward(ctx, dy, *unused):
        if dy is None:
            return None, None, None, None, None
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "NormReLU: the fused form is differentiable once, got create_graph=True; "
                "use_fused_norms(module, False) is differentiable twice"
            )
        grads = torch.ops.oekd_fast.norm_relu_backward(dy, *ctx.saved_tensors, ctx.needs_input_grad[3])
        return *(grad if needed else None for grad, needed in zip(grads, ctx.needs_input_grad[:4], strict=True)), None
