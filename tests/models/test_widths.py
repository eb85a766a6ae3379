"""Families with shares of their own and with channels in multiples of a divisor."""

from fractions import Fraction

import pytest
import torch
from torch import nn

from oekd_fast import FunctionalArchitecture, build_ensemble, load_standard_weights, student_flops
from oekd_fast.models import WidthRule, architecture_names, get_architecture, width_rule_of, with_widths

from .published_nets import published

SHARES = (1, 0.75, 0.5, 0.25)


def family_of(model, shares=None, divisor=None, **options):
    with torch.device("meta"):
        return build_ensemble(model, widths=shares, width_divisor=divisor, **options)


def maps_of(family):
    return [family.architecture.map_channels(j, family.num_students) for j in family.members]


def test_the_number_of_students_follows_the_shares():
    family = family_of("resnet20", SHARES)
    assert family.num_students == 4
    assert maps_of(family) == [(16, 32, 64), (12, 24, 48), (8, 16, 32), (4, 8, 16)]
    assert family_of("resnet20").num_students == 5
    with pytest.raises(ValueError, match="num_students: expected 4, one student for each share of widths, got 5"):
        family_of("resnet20", SHARES, num_students=5)


@pytest.mark.parametrize("name", architecture_names())
def test_explicit_shares_of_the_paper_change_nothing(name):
    paper = get_architecture(name)
    explicit = with_widths(paper, (1, 2 / 3, 1 / 3))
    assert [paper.map_channels(j, 3) for j in range(3)] == [explicit.map_channels(j, 3) for j in range(3)]


@pytest.mark.parametrize(
    ("name", "divisor", "channels"),
    [
        ("resnet20", 8, [(16, 32, 64), (12, 24, 48), (9, 24, 40), (6, 12, 24), (3, 6, 12)]),
        ("resnet20", 4, [(16, 32, 64), (12, 24, 52), (12, 20, 40), (6, 12, 24), (3, 6, 12)]),
        ("resnet18", 8, [(128, 256, 512), (104, 208, 408), (80, 152, 304), (48, 104, 208), (24, 48, 104)]),
        ("resnet18", 16, [(128, 256, 512), (96, 208, 416), (80, 160, 304), (48, 96, 208), (25, 48, 96)]),
        ("resnet50", 8, [(512, 1024, 2048), (416, 832, 1632), (320, 608, 1216), (192, 416, 832), (96, 192, 416)]),
        ("densenet_bc_12", 8, [(108, 150, 342), (84, 114, 258), (68, 90, 202), (44, 54, 118), (28, 30, 62)]),
        # Growth 40, 32, 24, 16, 8.
        ("densenet_bc_40", 8, [(660, 950, 2190), (536, 764, 1756), (412, 578, 1322), (288, 392, 888), (164, 206, 454)]),
        ("efficientnet_b0", 8, [(40, 112, 1280), (32, 88, 1024), (24, 64, 768), (16, 48, 512), (8, 24, 256)]),
        ("efficientnet_b0", 16, [(40, 112, 1280), (32, 96, 1024), (24, 64, 768), (16, 48, 512), (8, 24, 256)]),
    ],
)
def test_maps_of_five_students_in_multiples(name, divisor, channels):
    family = family_of(name, divisor=divisor)
    assert maps_of(family) == channels
    adapters = [[(a.in_channels, a.out_channels) for a in of_block] for of_block in family.adapters]
    assert adapters == [[(own, maps[0]) for own in maps[1:]] for maps in zip(*channels, strict=True)]


@pytest.mark.parametrize(
    ("name", "divisor", "layers", "growth"),
    [
        ("densenet_bc_12", 4, 16, [12, 9, 7, 4, 2]),  # 12 for student 2 would be student 1
        ("densenet_bc_24", 8, 41, [24, 19, 14, 9, 4]),
        ("densenet121", 8, 16, [32, 24, 19, 12, 6]),  # 24 for student 3 would be student 2
    ],
)
def test_growth_rates_of_different_students_differ(name, divisor, layers, growth):
    network = with_widths(get_architecture(name), width_divisor=divisor)
    channels = [network.map_channels(j, 5) for j in range(5)]
    assert [after - before for _, before, after in channels] == [layers * k for k in growth]


def test_close_shares_of_a_densenet_never_grow():
    network = with_widths(get_architecture("densenet_bc_40"), [Fraction(k, 60) for k in range(60, 2, -1)], 8)
    channels = [network.map_channels(j, 58) for j in range(58)]
    assert channels == sorted(channels, reverse=True)


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "resnet50", "resnext50_32x4d"])
@pytest.mark.parametrize("divisor", [4, 8, 16])
def test_convolutions_have_multiples_where_there_are_two(name, divisor):
    paper, rounded = family_of(name, (1, 0.7, 0.45)), family_of(name, (1, 0.7, 0.45), divisor)
    counts = [
        (before.out_channels, after.out_channels)
        for before, after in zip(paper.branches.modules(), rounded.branches.modules(), strict=True)
        if isinstance(before, nn.Conv2d)
    ]
    assert all(after % divisor == 0 for before, after in counts if before >= 2 * divisor)
    assert all(10 * after >= 9 * before for before, after in counts)
    assert paper.parameter_counts()[0] == rounded.parameter_counts()[0]


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "resnext50_32x4d", "densenet_bc_12", "efficientnet_b0"])
def test_parameters_and_operations_fall_with_the_share(name):
    family = family_of(name, SHARES, divisor=8)
    flops, parameters = student_flops(family, 32), family.parameter_counts()
    assert flops == sorted(set(flops), reverse=True)
    assert parameters == sorted(set(parameters), reverse=True)


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "densenet_bc_12", "efficientnet_b0"])
def test_a_family_with_its_own_widths_trains(name):
    torch.manual_seed(0)
    family = build_ensemble(name, num_classes=7, widths=SHARES, width_divisor=8, members=(0, 3))
    output = family(torch.randn(2, 3, 32, 32))
    for b, of_block in enumerate(family.adapters):
        assert of_block[0](output.features[1][b]).shape == output.features[0][b].shape
    sum(z.square().sum() for z in output.logits).backward()
    assert all(p.grad is not None for p in family.network_parameters())


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0, timm"])
def test_published_weights_fit_student_1_whatever_the_widths(name, one_thread):
    torch.manual_seed(0)
    model, net = published(name, num_classes=7)
    family = build_ensemble(model, num_classes=7, widths=SHARES, width_divisor=16, members=(0,)).eval()
    load_standard_weights(family.student(0), net.state_dict())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(family.student(0)(images), net.eval()(images), rtol=1e-4, atol=1e-5)


def test_student_1_is_the_whole_network_whatever_the_widths():
    plain, scaled = family_of("resnet50"), family_of("resnet50", SHARES, 16)
    shapes = [{n: t.shape for n, t in f.student(0).state_dict().items()} for f in (plain, scaled)]
    assert shapes[0] == shapes[1]


def test_an_architecture_keeps_its_widths():
    architecture = with_widths(get_architecture("resnet20"), SHARES, 8)
    family = family_of(architecture)
    assert family.num_students == 4
    assert family.architecture is architecture
    assert maps_of(family_of(architecture, divisor=1)) == maps_of(family_of("resnet20", SHARES))
    assert maps_of(family_of(architecture, (1, 0.2))) == maps_of(family_of("resnet20", (1, 0.2), 8))
    assert with_widths(architecture) is architecture
    assert width_rule_of(architecture) == WidthRule(SHARES, 8)
    assert width_rule_of(get_architecture("resnet20")) == WidthRule()
    assert architecture.name == "resnet20"
    assert hash(architecture) != hash(get_architecture("resnet20"))


def own_blocks(width):
    return [nn.Conv2d(4, width(40), 3, padding=1), nn.Conv2d(width(40), width(24), 1)]


def test_channels_that_are_found_by_running_follow_the_widths():
    own = FunctionalArchitecture("own", lambda channels: nn.Conv2d(channels, 4, 1), own_blocks, nn.Linear)
    assert maps_of(family_of(own, num_students=2)) == [(40, 24), (20, 12)]
    assert maps_of(family_of(own, (1, 0.7))) == [(40, 24), (28, 16)]
    assert maps_of(family_of(own, (1, 0.7), 8)) == [(40, 24), (32, 16)]
    assert maps_of(family_of(own, num_students=2)) == [(40, 24), (20, 12)]


class FixedArchitecture:
    """An `Architecture` without `with_widths`."""

    name, block_type = "fixed", nn.Conv2d

    def __init__(self):
        self._own = get_architecture("resnet20")
        self.build_base, self.build_branch = self._own.build_base, self._own.build_branch
        self.map_channels = self._own.map_channels


def test_the_usual_divisor_suits_networks_with_fewer_channels():
    small = FunctionalArchitecture("small", lambda channels: nn.Conv2d(channels, 4, 1),
                                   lambda width: [nn.Conv2d(4, width(6), 1)], nn.Linear)  # fmt: skip
    assert maps_of(family_of(small, divisor=8)) == maps_of(family_of(small))
    with pytest.raises(ValueError, match="width_divisor: expected at most 6, the largest number of channels of small"):
        family_of(small, divisor=9)


def test_an_architecture_without_other_widths_is_named():
    assert family_of(FixedArchitecture(), num_students=2).num_students == 2
    with pytest.raises(TypeError, match=r"^widths: fixed has widths of its own; .* got FixedArchitecture$"):
        family_of(FixedArchitecture(), SHARES)
    with pytest.raises(TypeError, match=r"^width_divisor: fixed has widths of its own"):
        family_of(FixedArchitecture(), divisor=8)


@pytest.mark.parametrize(
    ("shares", "divisor", "message"),
    [
        ((0.9, 0.5), None, "widths: expected 1 first, because student 1 is the whole network, got 0.9"),
        ((1, 0.5, 0.6), None, "widths: expected shares in descending order, got 0.6 after 0.5"),
        (None, 65, "width_divisor: expected at most 64, the largest number of channels of resnet20, got 65"),
        (None, 0, "width_divisor: expected an integer >= 1, got 0"),
    ],
)
def test_widths_that_do_not_fit_are_rejected(shares, divisor, message):
    with pytest.raises(ValueError, match=message):
        family_of("resnet20", shares, divisor)
