import re

import pytest
import torch

from oekd_fast import build_ensemble, student_flops
from oekd_fast.family.flops import family_flops


def test_a_multiply_add_counts_as_two():
    """ResNet-20 has 40.8 million multiply-adds at 32 x 32 (He et al. 2016), and more in its projections."""
    family = build_ensemble("resnet20", members=(0, 4))
    stem, linear = 27 * 16 * 1024, 64 * 10
    stages = (
        6 * 9 * 16 * 16 * 1024 + 9 * 16 * 32 * 256 + 5 * 9 * 32 * 32 * 256 + 9 * 32 * 64 * 64 + 5 * 9 * 64 * 64 * 64
    )
    projections = 16 * 32 * 256 + 32 * 64 * 64
    largest, smallest = student_flops(family, 32)
    assert largest == 2 * (stem + stages + projections + linear)
    assert 0 < smallest < 0.06 * largest


def test_the_base_is_counted_apart_from_the_branches():
    family = build_ensemble("resnet20", members=(0, 4))
    base, branches = family_flops(family, 32)
    assert base == 2 * 27 * 16 * 1024
    assert [base + branch for branch in branches] == student_flops(family, 32)


@pytest.mark.parametrize(("model", "giga"), [("resnet18", 1.81), ("resnet50", 4.09), ("efficientnet_b0", 0.39)])
def test_flops_of_student_1_equal_the_published_ones(model, giga):
    """`giga` is the number of multiply-adds at 224 x 224, from the documentation of torchvision."""
    (flops,) = student_flops(build_ensemble(model, num_classes=1000, members=(0,)), 224)
    assert flops / 2e9 == pytest.approx(giga, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_of_the_family_does_not_matter(dtype):
    family = build_ensemble("resnet20", 2)
    expected = student_flops(family, 16)
    assert student_flops(family.to(dtype), 16) == expected


def test_images_may_have_different_height_and_width():
    family = build_ensemble("resnet20", members=(4,))
    assert student_flops(family, (16, 32)) == pytest.approx([f / 2 for f in student_flops(family, 32)], rel=1e-3)


@pytest.mark.parametrize("size", [0, (32,), (32, 0)])
def test_an_invalid_image_size_is_rejected(size):
    message = f"image_size: expected one or two numbers >= 1, got {size!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        student_flops(build_ensemble("resnet20", members=(4,)), size)
