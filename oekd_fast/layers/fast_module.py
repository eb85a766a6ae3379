"""Base classes of modules that run their layers by the ops of this package."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from oekd_fast.layers import winograd
from oekd_fast.layers.direct_conv import direct_conv
from oekd_fast.layers.norm_relu import norm_alone, norm_relu
from oekd_fast.layers.scripting import Unscriptable
from oekd_fast.layers.unmodified import is_unmodified


class FastModule(Unscriptable, nn.Module):
    """Module whose forward runs its layers by `run_conv`, `run_norm` and `run_norm_relu`.

    Attributes:
        fused: whether `run_norm` and `run_norm_relu` may use the fused form; see `norm_relu`.
        direct: whether `run_conv` may use the direct form; see `direct_conv`.
        winograd: whether `run_conv` may use Winograd's form, which it prefers; see `winograd`.

    A subclass whose forward keeps channels of zeros at the end of its input zero and last, if its layers do, has an
    attribute `keeps_zero_channels` = True of its own, which its subclasses do not inherit.
    """

    fused = False
    direct = False
    winograd = False

    def run_conv(self, layer: nn.Module, x: Tensor, every: int = 1) -> Tensor:
        """Return `layer(x)`, or with `every` > 1 that of every n-th row and column of `x`."""
        if self.winograd and every == 1 and winograd.takes(layer, x):
            return winograd.winograd_conv(layer, x)
        return direct_conv(layer, x, every=every, direct=self.direct)

    def run_norm(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Return `layer(x)`."""
        return norm_alone(layer, x, fused=self.fused)

    def run_norm_relu(self, layer: nn.Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return `relu(layer(x) + residual)`."""
        return norm_relu(layer, x, residual, fused=self.fused)


class FastSequential(FastModule, nn.Sequential):
    """A ``torch.nn.Sequential`` that runs convolutions by `run_conv`, and a layer and its ReLU by `run_norm_relu`."""

    keeps_zero_channels = True

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the last layer."""
        done = None
        for layer, following in pairwise([*self, None]):
            if layer is done:
                continue
            if is_unmodified(following, nn.ReLU):
                x, done = self.run_norm_relu(layer, x), following
            else:
                x = self.run_conv(layer, x)
        return x


def use_fused_norms(module: nn.Module, enabled: bool = True) -> None:
    """Set `fused` of every `FastModule` in `module`."""
    for part in module.modules():
        if isinstance(part, FastModule):
            part.fused = enabled


def use_direct_convs(module: nn.Module, enabled: bool = True) -> None:
    """Set `direct` of every `FastModule` in `module`."""
    for part in module.modules():
        if isinstance(part, FastModule):
            part.direct = enabled


def use_winograd_convs(module: nn.Module, enabled: bool = True) -> None:
    """Set `winograd` of every `FastModule` in `module`."""
    for part in module.modules():
        if isinstance(part, FastModule):
            part.winograd = enabled
