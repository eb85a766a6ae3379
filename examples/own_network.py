"""Build a family of your own network from three functions, and compute its loss and gradients."""

import torch
from torch import nn

from oekd_fast import FunctionalArchitecture, build_ensemble, ensemble_kd_loss


def conv(c_in: int, c_out: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())


def base(in_channels: int) -> nn.Module:  # shared by all students
    return conv(in_channels, 16)


def blocks(width) -> list[nn.Module]:  # the output of each is one map; width(64) is the student's share of 64 channels
    return [conv(16, width(32), 2), conv(width(32), width(64), 2), conv(width(64), width(64))]


def head(channels: int, num_classes: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


ensemble = build_ensemble(FunctionalArchitecture("mine", base, blocks, head), num_students=3, num_classes=10)
output = ensemble(torch.randn(8, 3, 32, 32))  # the logits and the maps of each student
ensemble_kd_loss(output.logits, torch.randint(10, (8,))).loss.backward()
