"""Networks of a user as the option --model takes them: FILE.py:FUNCTION."""

from torch import nn


class Block(nn.Module):
    def __init__(self, c_in, c_out, stride=1):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(c_in, c_out, 3, stride, 1), nn.BatchNorm2d(c_out)
        self.mix = nn.Conv2d(c_out, c_out, 1)

    def forward(self, x):
        return self.mix(self.norm(self.conv(x)).relu())


class Net(nn.Module):
    def __init__(self, width, num_classes, in_channels):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width(8), 3, 1, 1)
        self.blocks = nn.Sequential(Block(width(8), width(8)), Block(width(8), width(16), 2))
        self.head = nn.Linear(width(16), num_classes)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def make(num_classes, in_channels):
    return Net(lambda channels: channels, num_classes, in_channels)


def by_width(width, num_classes, in_channels):
    return Net(width, num_classes, in_channels)


def three_classes(in_channels):
    return make(3, in_channels)


def asks(depth):
    return make(depth, 3)


def fails(num_classes):
    raise OSError("no weights\nhere")


def text(num_classes):
    return "a network"


number = 3
