"""Networks that cannot be scaled are refused in one line: module, operation, line of the network, reason."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from oekd_fast.models import Width
from oekd_fast.models.any_network import ScalingError, scale_module

from ...support.small_networks import IMAGE, resnet

HERE = Path(__file__).name


class Classified(nn.Module):
    """A convolution of 64 channels, something done to its map, and a linear layer."""

    def __init__(self, channels=64):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 64, 3, 2, 1), nn.Linear(channels, 10)

    def forward(self, images):
        x = self.changed(self.conv(images))
        return self.linear(x.mean((2, 3)) if x.ndim == 4 else x)


class WrittenSize(Classified):
    def __init__(self):
        super().__init__(256)

    def changed(self, x):
        return F.adaptive_avg_pool2d(x, 2).view(-1, 64 * 4)  # view


class WrittenSizeThatDivides(Classified):
    """With half of the channels and two images, the sizes fit by chance."""

    def __init__(self):
        super().__init__(128)

    def changed(self, x):
        return x.mean((2, 3)).view(-1, 128)  # by chance

    def forward(self, images):
        return self.linear(self.changed(self.conv(images)))


class WrittenSlices(Classified):
    def changed(self, x):
        return torch.cat([x[:, 32:], x[:, :32]], 1)  # slices


class ChannelShuffle(Classified):
    def changed(self, x):
        b, c, h, w = x.shape
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)  # shuffle


class PaddedShortcut(Classified):
    def changed(self, x):
        return F.pad(x, (0, 0, 0, 0, 4, 4))[:, 4:-4]  # pad


class Sorted(Classified):
    def changed(self, x):
        return x.mean((2, 3)).sort(1).values  # sort


class Largest(Classified):
    def changed(self, x):
        return x + x.mean((2, 3)).argmax(1)[:, None, None, None]  # argmax


class Written(Classified):
    def changed(self, x):
        y = torch.zeros_like(x)
        y[:, :, 1:] = x[:, :, 1:]  # write
        return y


class DependsOnWidth(Classified):
    def changed(self, x):
        if x.shape[1] == 64:
            x = x.relu()
        return x.mean((2, 3))  # shorter


class Constant(Classified):
    def changed(self, x):
        return x + torch.arange(64.0)[:, None, None]  # constant


class OnlyInTraining(Classified):
    def __init__(self):
        super().__init__()
        self.auxiliary = nn.Linear(64, 10)

    def changed(self, x):
        return self.auxiliary(x.mean((2, 3))) if self.training else x


class Fails(Classified):
    def changed(self, x):
        raise KeyError("a mistake of the network")  # fails


@pytest.mark.parametrize(
    ("build", "module", "operation", "marker", "reason"),
    [
        (WrittenSize, "WrittenSize", "view", "view", r"shape '\[-1, 256\]' is invalid"),
        (WrittenSlices, "WrittenSlices", "slice", "slices", r"expected a result \[2, \d+, 16, 16\]"),
        (ChannelShuffle, "ChannelShuffle", "view", "shuffle", "different numbers of channels in its rows"),
        (PaddedShortcut, "PaddedShortcut", "constant_pad_nd", "pad", "pads channels by a constant number"),
        (Sorted, "Sorted", "sort", "sort", "no rule says what this operation does to channels"),
        (Largest, "Largest", "argmax", "argmax", "no rule says"),
        (Written, "Written", "copy_", "write", "writes channels into a part of a tensor"),
        (DependsOnWidth, "DependsOnWidth", "mean", "shorter", "expected relu, as in the module"),
        (Constant, "Constant", "add", "constant", "combines 64 channels with inputs or constants"),
        (Fails, "Fails", "KeyError", "fails", "a mistake of the network"),
    ],
)
def test_the_operation_and_its_line_are_named(build, module, operation, marker, reason):
    lines = Path(__file__).read_text().splitlines()
    line = next(number for number, text in enumerate(lines, 1) if text.endswith(f"  # {marker}"))
    torch.manual_seed(0)
    with pytest.raises(ScalingError) as refusal:
        scale_module(build(), torch.randn(2, *IMAGE), Width(2, 5))
    message = str(refusal.value)
    assert "\n" not in message
    assert re.match(rf"{module}: {operation} \(\S*{HERE}:{line}\): ", message), message
    assert re.search(reason, message)
    assert "StudentEnsemble.from_factory(lambda width: ..., example_inputs)" in message


def test_sizes_that_fit_by_chance_are_refused():
    network = WrittenSizeThatDivides()
    network.conv = nn.Conv2d(3, 128, 3, 2, 1)
    with pytest.raises(ScalingError, match=r"view .*expected a result \[2, 64\] in a narrower copy, got \[1, 128\]"):
        scale_module(network, torch.randn(2, *IMAGE), Width(1, 2))


def test_the_submodule_is_named():
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ModuleDict({"body": Sorted()})["body"])
    with pytest.raises(ScalingError, match=r"^1 \(Sorted\): sort "):
        scale_module(network, torch.randn(2, *IMAGE), Width(1, 2))


def test_parameters_that_only_training_reads_are_refused():
    with pytest.raises(ScalingError, match="^auxiliary.weight: it is not used in evaluation mode"):
        scale_module(OnlyInTraining(), torch.randn(2, *IMAGE), Width(1, 2))


def test_a_network_without_hidden_channels_is_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    with pytest.raises(ScalingError, match=r"^1 \(Linear\): addmm .*3072 channels with inputs"):
        scale_module(network, torch.randn(2, *IMAGE), Width(1, 2))
    assert scale_module(network, torch.randn(2, *IMAGE), Width(0, 2))[1].weight.shape == (10, 3072)


def test_a_network_that_cannot_be_copied_is_refused():
    network = resnet()
    network.cache = torch.ones(2, requires_grad=True) * 2
    with pytest.raises(ScalingError, match="^Sequential: it cannot be copied: Only Tensors"):
        scale_module(network, torch.randn(2, *IMAGE), Width(1, 2))


def test_images_of_another_shape_are_refused():
    with pytest.raises(ScalingError, match=r"^0.0 \(Conv2d\): RuntimeError: .*to have 3 channels, but got 1"):
        scale_module(resnet(), torch.randn(2, 1, 32, 32), Width(1, 2))


def test_unknown_arguments_are_refused():
    images = torch.randn(2, *IMAGE)
    with pytest.raises(ValueError, match="^keep: expected names of modules, got 'stem'"):
        scale_module(resnet(), images, Width(1, 2), keep=["0", "stem"])
    with pytest.raises(ValueError, match="^start: expected 'slice' or 'fresh', got 'new'"):
        scale_module(resnet(), images, Width(1, 2), start="new")
