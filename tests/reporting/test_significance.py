"""Tests of differences in accuracy: known p-values and errors, and their limits."""

import math

import pytest
import torch

from oekd_fast.common.spread import binomial_error
from oekd_fast.reporting.significance import Difference, holm, on_other_images, on_same_images, over_seeds


def predictions(both: int, first: int, second: int, neither: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which images each of two networks classifies correctly, by the number of images of each outcome."""
    outcomes = [(True, True)] * both + [(True, False)] * first + [(False, True)] * second + [(False, False)] * neither
    return tuple(torch.tensor(outcomes, dtype=torch.bool).T)


def test_mcnemar_counts_the_images_that_one_network_alone_classifies_correctly():
    found = on_same_images(*predictions(80, 9, 1, 10))
    assert found.points == pytest.approx(8)
    # Of 10 images at least 9, on either side: 2 (10 + 1) / 2^10.
    assert found.p == pytest.approx(22 / 1024)
    # The differences are 1 for 9 images, -1 for one and 0 for 90.
    differences = torch.tensor([1.0] * 9 + [-1.0] + [0.0] * 90, dtype=torch.float64)
    assert found.error == pytest.approx(100 * differences.std(correction=0).item() / 10)
    swapped = on_same_images(*reversed(predictions(80, 9, 1, 10)))
    assert (swapped.points, swapped.p, swapped.error) == pytest.approx((-8, found.p, found.error))


@pytest.mark.parametrize(("both", "neither"), [(5, 0), (0, 5), (3, 2)])
def test_equal_predictions_have_no_difference(both, neither):
    assert on_same_images(*predictions(both, 0, 0, neither)) == Difference(0.0, 0.0, 1.0)


def test_networks_that_are_right_for_opposite_images():
    found = on_same_images(*predictions(0, 4, 4, 0))
    assert (found.points, found.p, found.error) == pytest.approx((0, 1, 100 / math.sqrt(8)))
    always = on_same_images(*predictions(0, 4, 0, 0))
    assert (always.points, always.p, always.error) == pytest.approx((100, 2 / 16, 0))


def test_predictions_for_different_images_are_refused():
    with pytest.raises(ValueError, match=r"first and second: expected predictions .* got \[3\] and \[2\]"):
        on_same_images(torch.ones(3, dtype=torch.bool), torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="at least one"):
        on_same_images(torch.ones(0, dtype=torch.bool), torch.ones(0, dtype=torch.bool))


def test_fisher_of_accuracies():
    found = on_other_images(75.0, 25.0, 4)  # 3 and 1 of 4
    assert found.points == 50 and found.p == pytest.approx(34 / 70)
    assert found.error == pytest.approx(100 * math.sqrt(2 * 0.75 * 0.25 / 4))
    assert on_other_images(100.0, 100.0, 50) == Difference(0.0, 0.0, 1.0)
    assert on_other_images(100.0, 0.0, 50).p < 1e-20


def test_unpaired_errors_are_larger_than_paired_ones_of_networks_that_mostly_agree():
    first, second = predictions(80, 9, 1, 10)
    paired, unpaired = on_same_images(first, second), on_other_images(89.0, 81.0, 100)
    assert unpaired.points == pytest.approx(paired.points)
    assert unpaired.error > paired.error and unpaired.p > paired.p


def test_paired_t_test_over_seeds():
    found = over_seeds([71.0, 72.0, 73.0], [70.0, 70.0, 70.0])  # differences 1, 2, 3
    assert (found.points, found.error) == pytest.approx((2, 1 / math.sqrt(3)))
    # t = 2 sqrt(3) with two degrees of freedom, whose distribution is 1/2 + t / (2 sqrt(2 + t^2)).
    t = 2 * math.sqrt(3)
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t))


def test_one_seed_has_neither_error_nor_test():
    assert over_seeds([71.0], [70.0]) == Difference(1.0, None, None)


def test_differences_without_spread():
    assert over_seeds([70.0, 80.0], [70.0, 80.0]) == Difference(0.0, 0.0, 1.0)
    # The same run twice proves nothing.
    assert over_seeds([71.0, 71.0], [70.0, 70.0]) == Difference(1.0, 0.0, None)


def test_binomial_error():
    assert binomial_error(50.0, 100) == 5.0
    assert binomial_error(0.0, 10) == binomial_error(100.0, 10) == 0.0


def test_holm():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, None, 0.9]) == [1.0, None, 1.0]
    assert holm([0.02]) == [0.02] and holm([]) == [] and holm([None]) == [None]


def test_texts():
    assert str(Difference(1.234, 0.567, 0.1)) == "+1.23 ± 0.57" and str(Difference(-0.5, None, None)) == "-0.50"
