"""Numbers of parameters of every network, compared with the published code and with closed forms."""

from functools import lru_cache
from math import ceil

import pytest
import torch

from oekd_fast import build_ensemble
from oekd_fast.models import Width, architecture_names, get_architecture

# Parameters of base and branch of students 1 to 5 with 10 classes; test_ensemble.py has those of CIFAR ResNets.
PARAMETERS = {
    "densenet_bc_12": [769_162, 446_170, 279_482, 102_410, 33_002],
    "densenet_bc_24": [15_324_406, 9_717_037, 5_385_086, 2_320_486, 529_966],
    "resnet18": [11_181_642, 7_197_601, 4_133_292, 1_930_631, 609_094],
    "resnet34": [21_289_802, 13_659_255, 7_801_426, 3_599_283, 1_081_546],
    "resnet50": [23_528_522, 15_103_613, 8_630_347, 3_980_994, 1_184_828],
    "resnet101": [42_520_650, 27_172_253, 15_426_760, 7_008_558, 1_946_921],
    "resnext50_32x4d": [23_000_394, 14_282_626, 8_187_786, 3_699_858, 1_095_194],
    "efficientnet_b0": [4_020_358, 2_577_548, 1_444_910, 758_880, 218_242],
    "efficientnet_b2": [7_715_084, 5_027_044, 2_921_916, 1_398_400, 362_014],
    "efficientnet_b4": [17_566_546, 11_318_320, 6_371_770, 2_881_562, 862_140],
}
# Parameters of student 1 with 1000 classes, from the documentation of torchvision.
PUBLISHED = {
    "resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032, "resnet101": 44_549_160,
    "resnet152": 60_192_808, "resnext50_32x4d": 25_028_904, "resnext101_32x8d": 88_791_336,
    "wide_resnet50_2": 68_883_240, "wide_resnet101_2": 126_886_696, "densenet121": 7_978_856,
    "efficientnet_b0": 5_288_548, "efficientnet_b1": 7_794_184, "efficientnet_b2": 9_109_994,
    "efficientnet_b3": 12_233_232, "efficientnet_b4": 19_341_616, "efficientnet_b5": 30_389_784,
    "efficientnet_b6": 43_040_704, "efficientnet_b7": 66_347_960,
}  # fmt: skip
MAPS = {
    "resnet20": [(16, 32, 64), (12, 25, 51), (9, 19, 38), (6, 12, 25), (3, 6, 12)],
    "densenet_bc_12": [(108, 150, 342), (84, 114, 258), (68, 90, 202), (44, 54, 118), (28, 30, 62)],
    "resnet18": [(128, 256, 512), (102, 204, 409), (76, 153, 307), (51, 102, 204), (25, 51, 102)],
    "resnet50": [(512, 1024, 2048), (408, 816, 1636), (304, 612, 1228), (204, 408, 816), (100, 204, 408)],
    "efficientnet_b0": [(40, 112, 1280), (32, 88, 1024), (24, 64, 768), (16, 48, 512), (8, 24, 256)],
    "densenet121": [(256, 512, 1024), (214, 407, 807), (178, 317, 621), (136, 212, 404), (100, 122, 218)],
}


@lru_cache
def family(name, num_students=5, num_classes=10, in_channels=3):
    with torch.device("meta"):
        return build_ensemble(name, num_students, num_classes, in_channels)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_five_students_equal_those_of_the_published_code(name):
    assert family(name).parameter_counts() == PARAMETERS[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_student_1_has_as_many_parameters_as_the_standard_network(name):
    with torch.device("meta"):
        alone = build_ensemble(name, num_classes=1000, members=(0,))
    assert alone.parameter_counts() == [PUBLISHED[name]]


@pytest.mark.parametrize("name", MAPS)
def test_map_channels_of_five_students(name):
    assert [get_architecture(name).map_channels(j, 5) for j in range(5)] == MAPS[name]


# Closed forms. Parameters of a convolution: k * k * C_in * C_out / groups, of BatchNorm: 2 * C, of a linear layer:
# (C + 1) * classes.


def basic_resnet(counts, planes, c, stem, stem_stage):
    """Count a ResNet of basic blocks; `stem_stage` tells whether the first stage belongs to the base, at full width."""

    def count(width, in_channels, classes):
        total, channels = stem * in_channels * c + 2 * c, c
        for s, (blocks, full) in enumerate(zip(counts, planes, strict=True)):
            out = full if stem_stage and s == 0 else width(full)
            for i in range(blocks):
                total += 9 * channels * out + 9 * out * out + 4 * out
                if i == 0 and (s > 0 or channels != out):
                    total += channels * out + 2 * out
                channels = out
        return total + (channels + 1) * classes

    return count


def bottleneck_resnet(counts, groups, base_width):
    def count(width, in_channels, classes):
        total, channels = 49 * in_channels * 64 + 128, 64
        for s, blocks in enumerate(counts):
            planes = width(64 * 2**s) if s else 64
            inner, out = max(1, planes * base_width // 64) * groups, 4 * planes
            for i in range(blocks):
                total += channels * inner + 9 * inner * inner // groups + inner * out + 4 * inner + 2 * out
                total += (channels * out + 2 * out) * (i == 0)
                channels = out
        return total + (channels + 1) * classes

    return count


def densenet(growth, stem, layers, full_blocks):
    """Count a DenseNet; `full_blocks` is the number of dense blocks in the base, at full width."""

    def count(width, in_channels, classes):
        channels = 2 * growth
        total = stem * in_channels * channels + 2 * channels * full_blocks
        for b, depth in enumerate(layers):
            k = growth if b < full_blocks else width(growth)
            for _ in range(depth):
                total += 2 * channels + 4 * k * channels + 8 * k + 36 * k * k
                channels += k
            if b < len(layers) - 1:
                total += 2 * channels + channels * (channels // 2)
                channels //= 2
        return total + 2 * channels + (channels + 1) * classes

    return count


def efficientnet(width_tenths, depth_tenths):
    stages = (
        (1, 3, 16, 1),
        (6, 3, 24, 2),
        (6, 5, 40, 2),
        (6, 3, 80, 3),
        (6, 5, 112, 3),
        (6, 5, 192, 4),
        (6, 3, 320, 1),
    )

    def count(width, in_channels, classes):
        def rounded(full, j=width.j):
            numerator, denominator = full * width_tenths * (width.n - j), 10 * width.n
            eights = max(8, (numerator + 4 * denominator) // (8 * denominator) * 8)
            return eights + 8 * (10 * eights * denominator < 9 * numerator)

        channels = rounded(32, j=0)
        total = 9 * in_channels * channels + 2 * channels
        for expansion, kernel, full, repeats in stages:
            out = rounded(full)
            for _ in range(ceil(repeats * depth_tenths / 10)):
                inner, squeezed = expansion * channels, channels // 4
                total += (channels * inner + 2 * inner) * (expansion > 1)
                total += kernel**2 * inner + 2 * inner + inner * out + 2 * out
                total += 2 * inner * squeezed + squeezed + inner
                channels = out
        head = rounded(1280)
        return total + channels * head + 2 * head + (head + 1) * classes

    return count


CLOSED_FORMS = {
    **{f"resnet{6 * n + 2}": basic_resnet((n,) * 3, (16, 32, 64), 16, 9, False) for n in (3, 5, 7, 9, 18)},
    "resnet18": basic_resnet((2, 2, 2, 2), (64, 128, 256, 512), 64, 49, True),
    "resnet34": basic_resnet((3, 4, 6, 3), (64, 128, 256, 512), 64, 49, True),
    "resnet50": bottleneck_resnet((3, 4, 6, 3), 1, 64),
    "resnet101": bottleneck_resnet((3, 4, 23, 3), 1, 64),
    "resnet152": bottleneck_resnet((3, 8, 36, 3), 1, 64),
    "resnext50_32x4d": bottleneck_resnet((3, 4, 6, 3), 32, 4),
    "resnext101_32x8d": bottleneck_resnet((3, 4, 23, 3), 32, 8),
    "wide_resnet50_2": bottleneck_resnet((3, 4, 6, 3), 1, 128),
    "wide_resnet101_2": bottleneck_resnet((3, 4, 23, 3), 1, 128),
    "densenet_bc_12": densenet(12, 9, (16,) * 3, 0),
    "densenet_bc_24": densenet(24, 9, (41,) * 3, 0),
    "densenet_bc_40": densenet(40, 9, (31,) * 3, 0),
    "densenet121": densenet(32, 49, (6, 12, 24, 16), 1),
    **{
        f"efficientnet_b{i}": efficientnet(*tenths)
        for i, tenths in enumerate([(10, 10), (10, 11), (11, 12), (12, 14), (14, 18), (16, 22), (18, 26), (20, 31)])
    },
}


@pytest.mark.parametrize("name", architecture_names())
def test_other_numbers_of_students_classes_and_channels_match_the_closed_forms(name):
    with torch.device("meta"):
        ours = build_ensemble(name, num_students=3, num_classes=37, in_channels=1, members=(2,))
    assert ours.parameter_counts() == [CLOSED_FORMS[name](Width(j, 3), 1, 37) for j in (2,)]


@pytest.mark.parametrize("name", ["resnext50_32x4d", "densenet_bc_12", "efficientnet_b0"])
def test_the_smallest_of_many_students_has_at_least_one_channel(name):
    with torch.device("meta"):
        last = build_ensemble(name, num_students=40, members=(39,))
    assert last.parameter_counts() == [CLOSED_FORMS[name](Width(39, 40), 3, 10)]
