"""Run folders that version 0.1.0 wrote, on the digits, and the network that they trained."""

from pathlib import Path

from torch import nn

from oekd_fast import FunctionalArchitecture

RUNS = Path(__file__).parents[1] / "fixtures" / "runs_of_0_1_0"


def conv(c_in: int, c_out: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.Softplus())


TINY = FunctionalArchitecture(
    "tiny", lambda c_in: conv(c_in, 4), lambda width: [conv(4, width(8), 2), conv(width(8), width(12), 2)], nn.Linear
)
