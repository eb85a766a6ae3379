"""Mean and spread of one number a run."""

import pytest

from oekd_fast.reporting.spread import spread


def test_spread_is_the_sample_standard_deviation():
    assert str(spread([3.0])) == "3.00"
    assert spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5), 2) and str(spread([1.0, 3.0])) == "2.00 ± 1.41"
