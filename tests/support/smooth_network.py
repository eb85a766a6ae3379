"""A small network without kinks, for comparisons of gradients with float64.

Rounding decides whether a ReLU near 0 is active, and one ReLU that differs changes a gradient by some percent. With
ReLUs, gradients would therefore differ from float64 by amounts that depend on the machine.
"""

from torch import nn

from oekd_fast.models import FunctionalArchitecture


def _conv(c_in: int, c_out: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.Softplus())


def _base(in_channels: int) -> nn.Module:
    return _conv(in_channels, 16)


def _blocks(width) -> list[nn.Module]:
    return [_conv(16, width(16)), _conv(width(16), width(32), 2), _conv(width(32), width(64), 2)]


SMOOTH = FunctionalArchitecture("smooth", _base, _blocks, nn.Linear)


def _plain_conv(c_in: int, c_out: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1), nn.Softplus())


def _plain_base(in_channels: int) -> nn.Module:
    return _plain_conv(in_channels, 16)


def _plain_blocks(width) -> list[nn.Module]:
    return [_plain_conv(16, width(16)), _plain_conv(width(16), width(32), 2), _plain_conv(width(32), width(64), 2)]


# Without norms, rows do not depend on each other.
PLAIN = FunctionalArchitecture("plain", _plain_base, _plain_blocks, nn.Linear)
