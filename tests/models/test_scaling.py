from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oekd_fast.models import compression_ratio, scaled_channels


def test_compression_ratios_of_five_students():
    assert [compression_ratio(j, 5) for j in range(5)] == [1.0, 0.8, 0.6, 0.4, 0.2]


@pytest.mark.parametrize(
    ("channels", "widths"), [(16, [16, 12, 9, 6, 3]), (32, [32, 25, 19, 12, 6]), (64, [64, 51, 38, 25, 12])]
)
def test_widths_of_five_students(channels, widths):
    assert [scaled_channels(channels, j, 5) for j in range(5)] == widths


@given(st.integers(1, 10**20), st.integers(1, 100), st.data())
def test_scaled_channels_truncates_the_exact_quotient(channels, n, data):
    j = data.draw(st.integers(0, n - 1))
    assert scaled_channels(channels, j, n) == max(1, int(channels * Fraction(n - j, n)))


def test_scaled_channels_are_at_least_one():
    assert scaled_channels(3, 9, 10) == 1


@pytest.mark.parametrize(("j", "n", "message"), [(0, 0, "n: .*>= 1, got 0"), (5, 5, "0..4, got 5"), (-1, 5, "got -1")])
def test_a_student_out_of_range_is_rejected(j, n, message):
    with pytest.raises(ValueError, match=message):
        compression_ratio(j, n)
    with pytest.raises(ValueError, match=message):
        scaled_channels(16, j, n)


def test_channels_below_one_are_rejected():
    with pytest.raises(ValueError, match="channels: expected an integer >= 1, got 0"):
        scaled_channels(0, 0, 5)
