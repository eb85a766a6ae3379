"""Differences of logits, and the tolerance that follows from the rounding errors of a network."""

import pytest
import torch
from torch import nn

from oekd_fast.family.exporting.comparison import largest_difference, plain_numerics, tolerance_of


def test_differences_are_relative_to_the_largest_logit_of_each_output():
    expected = [torch.tensor([[2.0, -8.0]]), torch.tensor([[0.5, 0.25]])]
    found = [torch.tensor([[2.0, -8.4]]), torch.tensor([[0.5, 0.25]])]
    assert largest_difference(found, expected) == pytest.approx(0.05)
    assert largest_difference(expected, expected) == 0.0


@pytest.mark.parametrize(
    "found", [torch.tensor([[1.0, float("nan")]]), torch.ones(1, 3), torch.ones(2, 2), torch.full((1, 2), torch.inf)]
)
def test_other_shapes_and_values_that_are_not_finite_differ_infinitely(found):
    assert largest_difference([found], [torch.ones(1, 2)]) == float("inf")
    assert largest_difference([], [torch.ones(1, 2)]) == float("inf")


class Cancelling(nn.Module):
    """A network that loses digits: it adds `large` to its input and subtracts it again."""

    def __init__(self, large: float) -> None:
        super().__init__()
        self.large = nn.Parameter(torch.tensor(large))

    def forward(self, images):
        return (images + self.large) - self.large


@pytest.mark.parametrize(
    ("large", "smallest", "largest"), [(0.0, 1e-5, 1e-5), (100.0, 1.1e-5, 9e-5), (1e6, 1e-3, 1e-3)]
)
def test_the_tolerance_grows_with_the_rounding_errors_of_the_network(large, smallest, largest):
    images = torch.rand(2, 50, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert smallest <= tolerance_of(Cancelling(large), images) <= largest


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, images):
        return self.linear(images.float())


def test_a_network_that_cannot_compute_in_float64_has_the_smallest_tolerance():
    assert tolerance_of(Half(), torch.rand(2, 4)) == 1e-5


def test_settings_are_restored_after_an_error():
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        with pytest.raises(ZeroDivisionError), plain_numerics():
            assert matmul.fp32_precision == "ieee" and not torch.is_grad_enabled()
            raise ZeroDivisionError
        assert matmul.fp32_precision == "bf16" and torch.is_grad_enabled()
    finally:
        matmul.fp32_precision = before
