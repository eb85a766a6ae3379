"""Problems for the tests of the fused BatchNorm, residual and ReLU, and ways to compute them."""

import torch
from torch import nn

from oekd_fast.layers.fast_module import FastModule, use_fused_norms

ops = torch.ops.oekd_fast
EPS = 1e-5


class NormReLU(FastModule):
    """One BatchNorm with a residual addition and a ReLU."""

    def __init__(self, channels, **options):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, **options)

    def forward(self, x, residual=None, relu=True):
        return self.run_norm_relu(self.norm, x, residual) if relu else self.run_norm(self.norm, x)


def random(*shape, seed=0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values


def problem(shape, *, residual=True, offset=0.0):
    """Return x, weight, bias, residual and dy.

    dy is 0 where the output before ReLU is so near 0 that rounding decides its sign.
    """
    x, weight, bias = random(*shape) + offset, random(shape[1], seed=1) + 1, random(shape[1], seed=2)
    added = random(*shape, seed=3) if residual else None
    before = nn.functional.batch_norm(x.double(), None, None, weight.double(), bias.double(), True, eps=EPS)
    before = before if added is None else before + added.double()
    return x, weight, bias, added, random(*shape, seed=4) * (before.abs() > 1e-2)


def plain(x, weight, bias, residual, dy, dtype, relu=True):
    """Return y, mean, variance, dx, dweight, dbias, dresidual, computed by PyTorch's own functions in `dtype`."""
    leaves = [t.to(dtype, copy=True).requires_grad_() for t in (x, weight, bias, residual) if t is not None]
    mean, variance = (torch.zeros(x.shape[1], dtype=dtype) for _ in range(2))
    y = nn.functional.batch_norm(leaves[0], mean, variance, *leaves[1:3], True, momentum=1.0, eps=EPS)
    y = y if residual is None else y + leaves[3]
    y = torch.relu(y) if relu else y
    return [y.detach(), mean, variance, *torch.autograd.grad(y, leaves, dy.to(dtype))]


def sizes(x, weight, bias, residual, dy, y, mean, variance, relu, of_mean=torch.mean):
    """Return a scale for the rounding error of each output: of the terms of its sum where these may cancel.

    Args:
        y, mean, variance: exact results in float64.
        of_mean: reduces the absolute values of a channel to the scale of its mean.
    """
    rstd = (variance[:, None, None] + EPS).rsqrt()
    g = (dy * (y > 0) if relu else dy).abs()
    x_hat = (x - mean[:, None, None]).abs() * rstd
    over = 0, 2, 3
    of_means = of_mean(x.double().abs(), over)
    return y, of_means, variance, g * rstd * weight[:, None, None], (g * x_hat).sum(over), g.sum(over), g


def in_bf16(x, weight, bias, residual, dy):
    """Return a problem whose maps are rounded to bfloat16."""
    return x.bfloat16(), weight, bias, residual if residual is None else residual.bfloat16(), dy.bfloat16()


def in_fp32(x, weight, bias, residual, dy):
    """Return the same problem with maps in float32."""
    return x.float(), weight, bias, residual if residual is None else residual.float(), dy.float()


def in_layout(layout, *maps):
    """Return the tensors with maps in `layout`; None and vectors stay as they are."""
    return [t if t is None or t.dim() < 4 else t.contiguous(memory_format=layout) for t in maps]


def by_ops(x, weight, bias, residual, dy, isa="auto", relu=True):
    """Return y, mean, variance, dx, dweight, dbias, dresidual, computed by the ops."""
    y, mean, variance, rstd = ops.norm_relu(x, weight, bias, residual, EPS, relu, isa=isa)
    kept, added = None if residual is None else y, residual is not None
    *grads, dresidual = ops.norm_relu_backward(dy, x, kept, weight, bias, mean, rstd, added, relu, isa=isa)
    return [y, mean, variance, *grads, *(() if residual is None else (dresidual,))]


def by_module(x, weight, bias, residual, dy, *, fused):
    """Return the same as `by_ops`, computed by the module, with running statistics instead of those of the batch."""
    module = NormReLU(x.shape[1], eps=EPS)
    norm = module.norm
    norm.load_state_dict({**norm.state_dict(), "weight": weight, "bias": bias})
    use_fused_norms(module, fused)
    leaves = [t.clone().requires_grad_() for t in (x, residual) if t is not None]
    y = module(*leaves)
    dx, *dresidual, dweight, dbias = torch.autograd.grad(y, [*leaves, *norm.parameters()], dy)
    return [y.detach(), norm.running_mean, norm.running_var, dx, dweight, dbias, *dresidual]


def same_bits(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
