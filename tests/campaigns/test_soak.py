"""The verdict of the soak campaign on samples that are flat, noisy or growing."""

import pytest

from .soak import Sample, judge


def samples(**per_hour):
    flat = {"rss_mb": 600.0, "open_files": 8, "threads": 4, "live_tensors": 1000, "live_tensors_mb": 8.0}
    made = []
    for i in range(40):
        noise = {"rss_mb": 5.0 * (i % 3)}
        held = {name: value + noise.get(name, 0) + per_hour.get(name, 0) * i / 20 for name, value in flat.items()}
        made.append(Sample(hours=i / 20, steps=i, rounds=i, **held))
    return made


def test_constant_quantities_with_noise_are_flat():
    assert judge(samples())["flat"] is True


@pytest.mark.parametrize(
    "growth", [{"rss_mb": 20}, {"open_files": 1}, {"threads": 1}, {"live_tensors": 20}, {"live_tensors_mb": 2}]
)
def test_growth_above_its_limit_is_not_flat(growth):
    assert judge(samples(**growth))["flat"] is False


def test_too_few_samples_give_no_verdict():
    assert judge(samples()[:3])["flat"] is None
