"""Mean and sample standard deviation of one number per run."""

import pytest

from oekd_fast.common.spread import Spread, spread


def test_spread_is_the_sample_standard_deviation():
    assert spread([3.0]) == (3.0, None)
    assert spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (Spread(3.0, None), "", "3.00"),
        (Spread(2.0, 2**0.5), "", "2.00 ± 1.41"),
        (Spread(2.0, 2**0.5), "+.1f", "+2.0 ± 1.41"),
        (Spread(-0.5, None), "+.2f", "-0.50"),
    ],
)
def test_spread_is_formatted_as_mean_and_deviation(value, form, text):
    assert format(value, form) == text
    assert form or str(value) == text
