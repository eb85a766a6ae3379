"""Places to cut a network: found in its graph, or given by names."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from oekd_fast.models.any_network.cut import find_cut
from oekd_fast.models.any_network.errors import CutError
from oekd_fast.models.any_network.units import block_class

from ...support.width_networks import PreAct, ResNet, TransformerBlock, ViT

IMAGES = torch.randn(2, 3, 16, 16)


def half(channels):
    return channels // 2


def cut_of(network, narrow=None, **names):
    return find_cut(network.eval(), IMAGES, narrow, **names)[0]


def test_stages_are_blocks_and_what_is_before_them_is_the_base():
    cut = cut_of(ResNet())
    assert cut.names == ("stem", "stages.0", "stages.1")
    assert cut.shapes == ((2, 8, 16, 16), (2, 8, 16, 16), (2, 16, 8, 8))


@pytest.mark.parametrize("depth, ends", [(8, (1, 3, 5, 7)), (9, (2, 5, 8)), (7, (0, 2, 4, 6)), (3, (0, 1, 2))])
def test_equal_blocks_are_grouped_by_depth(depth, ends):
    cut = cut_of(ViT(depth=depth), ViT(half, depth=depth))
    assert cut.names == ("patch_embed", *(f"blocks.{end}" for end in ends))
    assert cut.shapes[0] == (2, 16, 17, 1)
    assert {(seam.axis, seam.ndim) for seam in cut.seams} == {(2, 3)}


def chain(*layers):
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))


def test_plain_layers_are_blocks_up_to_their_pooling():
    def conv(c_in, c_out):
        return [nn.Conv2d(c_in, c_out, 3, 1, 1), nn.BatchNorm2d(c_out), nn.ReLU()]

    layers = [*conv(3, 8), *conv(8, 8), nn.MaxPool2d(2), *conv(8, 16), *conv(16, 16), nn.MaxPool2d(2), *conv(16, 16)]
    assert cut_of(chain(*layers)).names == ("2", "5", "9", "12", "16")
    more = [*layers, *conv(16, 16), *conv(16, 16)]  # six blocks: one for each size of maps
    assert cut_of(chain(*more)).names == ("2", "5", "12", "22")


def test_a_network_inside_of_another_is_cut_inside():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = ResNet()

        def forward(self, x):
            return self.model(x) / 2

    cut = cut_of(Wrapper())
    assert cut.enter == {"model"}
    assert cut.names == ("model.stem", "model.stages.0", "model.stages.1")


def test_channels_are_in_the_dimension_in_which_a_narrower_network_differs():
    class Last(nn.Module):
        """Maps [B, H, W, C]."""

        def __init__(self, channels):
            super().__init__()
            self.embed = nn.Conv2d(3, channels, 4, 4)
            self.blocks = nn.Sequential(*[nn.Linear(channels, channels) for _ in range(3)])
            self.head = nn.Linear(channels, 5)

        def forward(self, x):
            return self.head(self.blocks(self.embed(x).permute(0, 2, 3, 1)).mean((1, 2)))

    cut = cut_of(Last(8), Last(4))
    assert [seam.axis for seam in cut.seams] == [3, 3, 3, 3] and cut.shapes[1] == (2, 8, 4, 4)


def test_names_choose_the_cut():
    network = ResNet()
    assert cut_of(network, blocks=["stages.0.1", "stages.1.0"]).names == ("stem", "stages.0.1", "stages.1.0")
    assert cut_of(network, base="stages.0.0").names == ("stages.0.0", "stages.0", "stages.1")
    assert cut_of(network, base="stages.0", blocks=["norm"]).names == ("stages.0", "norm")


@pytest.mark.parametrize(
    "names, message",
    [
        ({"base": "stam"}, r"base: expected the name of a module of ResNet, got 'stam'; did you mean 'stem'\?"),
        ({"blocks": ["stages.2"]}, r"blocks: expected the name of a module of ResNet, got 'stages.2'"),
        ({"blocks": ["stages"]}, r"blocks: expected a module that is called once, got 'stages', which is called by no"),
        ({"blocks": ["stages.1", "stages.0"]}, "blocks: expected modules in the order .* 'stages.1' before 'stages.0'"),
        ({"base": "stages.1", "blocks": ["stages.0"]}, "base: expected modules in the order .* 'stages.1' before"),
        (
            {"blocks": ["stages.0.0.conv1"]},
            r"its output alone is needed, got 'stages.0.0.conv1'.*needed too",
        ),
        ({"blocks": ["stem"]}, r"base: expected a module before 'stem'"),
    ],
)
def test_names_that_do_not_fit_are_named(names, message):
    with pytest.raises(CutError, match=message):
        cut_of(ResNet(), **names)


def test_a_network_without_blocks_is_an_error_that_names_the_other_forms():
    class One(nn.Linear):
        def forward(self, x):
            return super().forward(x.mean((2, 3)))

    with pytest.raises(CutError, match=r"no blocks found in One; blocks= names .*from_factory.*pass blocks=\(\)"):
        cut_of(One(3, 5))


def test_other_outputs_than_logits_are_an_error():
    class Pair(ResNet):
        def forward(self, x):
            return super().forward(x), x

    with pytest.raises(CutError, match=r"expected logits \[2, C\] as the output, got tuple"):
        cut_of(Pair())


def test_the_blocks_are_the_innermost_modules_that_are_repeated_in_a_series():
    assert block_class(ResNet()) is PreAct
    assert block_class(ViT()) is TransformerBlock
    assert block_class(chain(nn.Conv2d(3, 16, 3))) is None

    class Stage(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.blocks = nn.Conv2d(3, 4, 1), nn.Sequential(PreAct(4, 4), PreAct(4, 4))

    assert block_class(nn.Sequential(Stage(), Stage())) is PreAct


def test_sums_of_skipped_maps_are_no_places_to_cut():
    class Skip(nn.Module):
        """The output of the first layer is needed until the last one."""

        def __init__(self):
            super().__init__()
            self.convs = nn.ModuleList([nn.Conv2d(3, 8, 1), *[nn.Conv2d(8, 8, 1) for _ in range(3)]])
            self.head = nn.Linear(8, 5)

        def forward(self, x):
            first = x = self.convs[0](x)
            for conv in self.convs[1:]:
                x = F.relu(conv(x))
            return self.head((x + first).mean((2, 3)))

    with pytest.raises(CutError, match="blocks: expected a module after which its output alone .* 'convs_0' is needed"):
        cut_of(Skip(), blocks=["convs.1"])
