"""The values of each step: their table, and what the device and the host read of it."""

import math

import pytest
import torch

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.training.distillation import family_options
from oekd_fast.training.schedule import Schedule, ema_shares, rate_factors

CPU = torch.device("cpu")


def make(config, steps_per_epoch):
    return Schedule(config, family_options(config), steps_per_epoch, CPU)


def test_multistep_falls_at_its_milestones_after_a_linear_warm_up():
    factors = rate_factors(TrainConfig(epochs=8, warmup_epochs=1, milestones=(0.5, 0.75), decay=0.1), 4).tolist()
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:16] == [1.0] * 12
    assert factors[16:24] == pytest.approx([0.1] * 8)
    assert factors[24:] == pytest.approx([0.01] * 8)


def test_cosine_falls_to_near_zero():
    factors = rate_factors(TrainConfig(epochs=10, warmup_epochs=0, schedule="cosine"), 10).tolist()
    assert factors == sorted(factors, reverse=True)
    assert factors[0] == 1.0 and factors[50] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))


def test_the_weight_of_the_labels_rises_to_its_value():
    schedule = make(TrainConfig(epochs=3, ce_schedule="linear", ramp_epochs=1.0, ce_weight=0.6, kd_weight=0.3), 4)
    read = []
    for _ in range(6):
        schedule.load()
        read.append((schedule.ce_weight.item(), schedule.kd_weight.item()))
    assert [ce for ce, _ in read] == pytest.approx([0.0, 0.15, 0.3, 0.45, 0.6, 0.6])
    assert [kd for _, kd in read] == pytest.approx([0.3] * 6)


def test_a_step_finds_its_values_where_those_of_the_last_one_were():
    config = TrainConfig(epochs=4, schedule="cosine", warmup_epochs=0, learning_rate=0.2, adapter_rate=0.25)
    schedule = make(config, 5)
    rate, adapters = schedule.learning_rate, schedule.adapter_rate
    expected = 0.2 * rate_factors(config, 5)
    for step in range(20):
        assert schedule.rate == pytest.approx(expected[step].item())
        schedule.load()
        schedule.count()
        assert rate.item() == pytest.approx(expected[step].item(), rel=1e-6)
        assert adapters.item() == pytest.approx(0.25 * expected[step].item(), rel=1e-6)
    assert (schedule.temperature, schedule.ce_weight) == (2.0, torch.tensor(0.7))
    assert (schedule.kd_weight, schedule.feature_weight) == (torch.tensor(0.15), torch.tensor(0.15))
    schedule.load()  # beyond the end
    schedule.count()
    assert rate.item() == pytest.approx(expected[-1].item()) and schedule.rate == expected[-1].item()


def test_it_continues_from_its_state():
    config = TrainConfig(epochs=4, schedule="cosine")
    straight, continued = make(config, 5), make(config, 5)
    for _ in range(7):
        straight.load()
        straight.count()
    continued.load_state_dict(straight.state_dict())
    for schedule in (straight, continued):
        schedule.load()
    assert continued.rate == straight.rate
    assert torch.equal(continued.learning_rate, straight.learning_rate)


def test_nothing_is_read_back(monkeypatch):
    schedule = make(TrainConfig(), 5)

    def refuse(self, *args):
        raise AssertionError("a value was read")

    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    schedule.load()
    schedule.count()


def test_the_average_forgets_the_first_weights_quickly():
    shares = ema_shares(0.99, 2000)
    assert shares[0] == pytest.approx(0.9) and shares[-1] == pytest.approx(0.01)
    assert (shares.diff() <= 0).all()
    assert not ema_shares(None, 3).any()
