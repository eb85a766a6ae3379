"""Which runs the paper's numbers are shown beside."""

import pytest

from oekd_fast.reporting.paper_points import paper_points
from oekd_fast.reporting.spread import spread


@pytest.mark.parametrize("dataset", ["cifar100", "uoft-cs/cifar100"])
def test_the_papers_numbers_for_a_family_of_five(dataset):
    points = paper_points(dataset, "resnet110", 5)
    assert (points.alone[4], points.family[4], points.ensemble) == (42.26, 46.76, 78.86)


def test_hub_name_and_short_name_of_imagenet_are_the_papers():
    assert paper_points("ILSVRC/imagenet-1k", "resnet50", 5) == paper_points("imagenet-1k", "resnet50", 5)
    assert paper_points("imagenet-1k", "resnet50", 5).ensemble is None


@pytest.mark.parametrize(
    ("dataset", "model", "count"), [("digits", "resnet20", 5), ("cifar100", "resnet20", 5), ("cifar100", "resnet32", 3)]
)
def test_what_the_paper_does_not_have(dataset, model, count):
    assert paper_points(dataset, model, count) is None


def test_spread_is_the_sample_standard_deviation():
    assert str(spread([3.0])) == "3.00"
    assert spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5), 2) and str(spread([1.0, 3.0])) == "2.00 ± 1.41"
