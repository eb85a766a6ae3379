"""BatchNorm whose statistics are those of the whole batch, over all ranks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from oekd_fast.distributed.world import World


class _GlobalStatistics:
    """Forward pass of a BatchNorm of torch that normalises by statistics over all ranks in training.

    Args:
        norm: layer whose parameters, running statistics and options are used; they are shared, not copied.
    """

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d, world: World) -> None:
        super().__init__(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta"
        )
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.training = norm.training
        self._world = world

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised map, in the shape and dtype of `x`."""
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        y, mean, variance, count = _Normalise.apply(x, self.weight, self.bias, self.eps, self._world)
        if self.track_running_stats:
            self._track(mean, variance * (count / (count - 1)))
        return y

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        share = 1.0 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        torch._foreach_lerp_(
            [self.running_mean, self.running_var],
            [mean.to(self.running_mean.dtype), variance.to(self.running_var.dtype)],
            share,
        )


class GlobalBatchNorm1d(_GlobalStatistics, nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d`` with statistics over all ranks; see `GlobalBatchNorm2d`."""


class GlobalBatchNorm2d(_GlobalStatistics, nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` that normalises by mean and variance over the images of all ranks in training.

    ``torch.nn.SyncBatchNorm`` does the same on CUDA devices, and refuses CPU tensors. Results, gradients and running
    statistics are those of one process with the whole batch, up to rounding. All ranks must call their layers in the
    same order.
    """


_GLOBAL = {nn.BatchNorm1d: GlobalBatchNorm1d, nn.BatchNorm2d: GlobalBatchNorm2d}


def use_global_norms(module: nn.Module, world: World) -> None:
    """Replace every BatchNorm in `module` by one with statistics over all ranks.

    That is ``torch.nn.SyncBatchNorm`` on CUDA devices, and `GlobalBatchNorm1d` or `GlobalBatchNorm2d` elsewhere.
    """
    for name, child in module.named_children():
        if type(child) in _GLOBAL:
            on_cuda = any(tensor.is_cuda for tensor in child.state_dict().values())
            replacement = (
                nn.SyncBatchNorm.convert_sync_batchnorm(child) if on_cuda else _GLOBAL[type(child)](child, world)
            )
            setattr(module, name, replacement)
        else:
            use_global_norms(child, world)


class _Normalise(torch.autograd.Function):
    """x, weight, bias -> (x - mean) / sqrt(variance + eps) * weight + bias, mean, biased variance, count.

    The sums of a channel are exchanged in float64 and added in the order of ranks, so that all ranks get the same bits.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, eps, world):
        dtype = torch.promote_types(x.dtype, torch.float32)
        wide = x.to(dtype)
        own_count = float(x.numel() // x.shape[1])
        own_mean = wide.mean(dim=_others(x), dtype=torch.float64)
        own_squares = (wide - _channels(own_mean.to(dtype), x)).square().sum(dim=_others(x), dtype=torch.float64)
        # The mean was rounded to dtype before it was subtracted.
        own_squares -= own_count * (own_mean - own_mean.to(dtype).double()).square()
        own = torch.cat((own_mean, own_squares, own_mean.new_full((1,), own_count)))
        means, squares, counts = torch.stack(world.gather(own)).to(x.device).split([len(own_mean)] * 2 + [1], dim=1)
        count = counts.sum()
        mean = (counts * means).sum(dim=0) / count
        variance = (squares + counts * (means - mean).square()).sum(dim=0) / count
        rstd = torch.rsqrt(variance + eps).to(dtype)
        normal = (wide - _channels(mean.to(dtype), x)) * _channels(rstd, x)
        y = normal
        if weight is not None:
            y = torch.addcmul(_channels(bias.to(dtype), x), normal, _channels(weight.to(dtype), x))
        ctx.save_for_backward(x, weight, mean.to(dtype), rstd)
        ctx.count, ctx.world = count, world
        ctx.mark_non_differentiable(mean, variance, count)
        ctx.set_materialize_grads(False)
        return y.to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx, dy, *unused):
        if dy is None:
            return None, None, None, None, None
        x, weight, mean, rstd = ctx.saved_tensors
        dy = dy.to(rstd.dtype)
        normal = (x.to(rstd.dtype) - _channels(mean, x)) * _channels(rstd, x)
        own = torch.stack([part.sum(dim=_others(x), dtype=torch.float64) for part in (dy, dy * normal)])
        of_all = (torch.stack(ctx.world.gather(own)).sum(dim=0).to(x.device) / ctx.count).to(rstd.dtype)
        dx = dy - _channels(of_all[0], x) - normal * _channels(of_all[1], x)
        dx *= _channels(rstd if weight is None else rstd * weight.to(rstd.dtype), x)
        if weight is None:
            return dx.to(x.dtype), None, None, None, None
        return dx.to(x.dtype), own[1].to(weight.dtype), own[0].to(weight.dtype), None, None


def _others(x: Tensor) -> list[int]:
    """Return all dimensions but that of the channels."""
    return [0, *range(2, x.dim())]


def _channels(values: Tensor, x: Tensor) -> Tensor:
    """Return one value a channel in a shape that broadcasts to `x`."""
    return values.view(-1, *[1] * (x.dim() - 2))
