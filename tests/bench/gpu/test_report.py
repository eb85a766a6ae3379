"""Figures derived from a report of bench.gpu."""

import pytest

from bench.gpu import report as gpu_report
from bench.model import roofline


def test_bandwidths_and_shares_of_the_bounds():
    result = {"rows": 8192, "classes": 32000, "dtype": "bfloat16", "device_ms": {"value_and_grad": {"median": 2.0}}}
    result["device_ms"] |= {"eager": {"median": 20.0}}
    derived = gpu_report.derive(result, 4e12, "NVIDIA H200")["value_and_grad"]
    moved = roofline.value_and_grad(roofline.Problem(5, 8192, 32000, 2)).bytes
    assert derived["gigabytes_per_second"] == pytest.approx(moved / 2e-3 / 1e9, abs=0.1)
    assert derived["share_of_copy"] == pytest.approx(moved / 2e-3 / 4e12, abs=1e-4)
    assert 0 < derived["share_of_floor"] < 1 and derived["faster_than"] == {"eager": 10.0}
    assert "share_of_copy" not in gpu_report.derive(result, None)["value_and_grad"]
