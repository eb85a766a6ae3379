"""Scheduled values: learning rates, ramps, and what a step reads of them on the device."""

import math

import pytest
import torch

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.training.distillation import family_options
from oekd_fast.training.schedule import Schedule, copy_shares, ema_shares, ramp, rate_factors

CPU = torch.device("cpu")


def make(config, steps_per_epoch):
    return Schedule(config, family_options(config), steps_per_epoch, CPU)


def test_a_multistep_rate_falls_at_its_milestones_after_a_linear_warm_up():
    factors = rate_factors(TrainConfig(epochs=8, warmup_epochs=1, milestones=(0.5, 0.75), decay=0.1), 4).tolist()
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:16] == [1.0] * 12
    assert factors[16:24] == pytest.approx([0.1] * 8)
    assert factors[24:] == pytest.approx([0.01] * 8)


def test_a_cosine_rate_falls_to_near_zero():
    factors = rate_factors(TrainConfig(epochs=10, warmup_epochs=0, schedule="cosine"), 10).tolist()
    assert factors == sorted(factors, reverse=True)
    assert factors[0] == 1.0 and factors[50] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))


@pytest.mark.parametrize(("epochs", "rise"), [(1, 0.1), (3, 0.3), (5, 0.5), (2, 0.99)])
def test_a_one_cycle_rate_is_that_of_pytorch(epochs, rise):
    config = TrainConfig(epochs=epochs, schedule="one_cycle", rise=rise, warmup_epochs=2)
    factors = rate_factors(config, 7)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=7 * epochs, pct_start=rise, cycle_momentum=False
    )
    expected = cycle.get_last_lr()
    for _ in range(7 * epochs - 1):
        optimizer.step()
        cycle.step()
        expected.append(cycle.get_last_lr()[0])
    assert factors.tolist() == pytest.approx(expected, rel=1e-12)


def test_a_linear_ramp_raises_the_weight_of_the_labels():
    schedule = make(TrainConfig(epochs=3, ce_schedule="linear", ramp_epochs=1.0, ce_weight=0.6, kd_weight=0.3), 4)
    read = []
    for _ in range(6):
        schedule.load()
        read.append((schedule.ce_weight.item(), schedule.kd_weight.item()))
    assert [ce for ce, _ in read] == pytest.approx([0.0, 0.15, 0.3, 0.45, 0.6, 0.6])
    assert [kd for _, kd in read] == pytest.approx([0.3] * 6)


def test_scheduled_values_keep_their_tensors():
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


def test_the_loss_gets_numbers_if_all_of_its_values_are_constant():
    constant = make(TrainConfig(epochs=3, schedule="cosine", feature_schedule="linear"), 4)
    assert constant.of_loss == {"temperature": 2.0, "ce_weight": torch.tensor(0.7), "kd_weight": torch.tensor(0.15)}
    assert all(type(value) is float for value in constant.of_loss.values())
    ramped = make(TrainConfig(epochs=3, kd_schedule="linear", ramp_epochs=1.0), 4)
    assert ramped.of_loss["temperature"] is ramped.temperature and ramped.of_loss["kd_weight"] is ramped.kd_weight


def test_a_schedule_continues_from_its_state():
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


def test_loading_a_step_reads_no_value_on_the_host(monkeypatch):
    schedule = make(TrainConfig(), 5)

    def refuse(self, *args):
        raise AssertionError("a value was read")

    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    schedule.load()
    schedule.count()


def test_the_share_of_new_weights_in_the_average_falls_to_its_limit():
    shares = ema_shares(0.99, 2000)
    assert shares[0] == pytest.approx(0.9) and shares[-1] == pytest.approx(0.01)
    assert (shares.diff() <= 0).all()
    assert not ema_shares(None, 3).any()


def test_ramps_rise_from_0_to_1_and_stay():
    t = torch.tensor([0, 1, 2, 3, 4, 4, 4], dtype=torch.float64) / 4
    assert torch.equal(ramp("constant", 7, 4), torch.ones(7, dtype=torch.float64))
    torch.testing.assert_close(ramp("linear", 7, 4), t)
    torch.testing.assert_close(ramp("cosine", 7, 4), 0.5 - 0.5 * torch.cos(torch.pi * t))
    torch.testing.assert_close(ramp("sigmoid", 7, 4), torch.exp(-5 * (1 - t) ** 2))
    assert torch.equal(ramp("linear", 3, 0), torch.ones(3, dtype=torch.float64))


def test_copies_are_due_every_delay_steps():
    assert copy_shares(3, 7).tolist() == [1, 0, 0, 1, 0, 0, 1]
    assert copy_shares(0, 3).tolist() == [0, 0, 0]


def test_a_step_reads_scheduled_temperature_and_weights():
    config = TrainConfig(
        epochs=2, temperature_schedule="linear", temperature_start=1.0, temperature=3.0, kd_schedule="linear",
        feature_schedule="cosine", ramp_epochs=1.0, warmup_epochs=0,
    )  # fmt: skip
    schedule = Schedule(config, family_options(config), 4, CPU)
    read = []
    for _ in range(6):
        schedule.load()
        read.append([schedule.temperature.item(), schedule.kd_weight.item(), schedule.feature_weight.item()])
    expected = [1.0, 1.5, 2.0, 2.5, 3.0, 3.0]
    assert [row[0] for row in read] == pytest.approx(expected)
    assert [row[1] for row in read] == pytest.approx([0.15 * (t - 1) / 2 for t in expected])
    assert read[0][2] == 0 and read[2][2] == pytest.approx(0.075) and read[5][2] == pytest.approx(0.15)


def test_a_cyclic_rate_restarts_for_each_snapshot():
    config = TrainConfig(objective="snapshot", schedule="cyclic", snapshots=2, epochs=5, warmup_epochs=0)
    factors = rate_factors(config, 4)
    starts = [i for i in range(20) if factors[i] == 1.0]
    assert starts == [0, 12]  # cycles of 3 and 2 epochs: their lengths differ by one epoch at most
    for start, length in ((0, 12), (12, 8)):
        steps = torch.arange(length, dtype=torch.float64)
        torch.testing.assert_close(factors[start : start + length], 0.5 + 0.5 * torch.cos(torch.pi * steps / length))


def test_an_exponential_rate_decays_in_steps():
    config = TrainConfig(schedule="exponential", decay=0.97, decay_epochs=3, epochs=7, warmup_epochs=0)
    assert rate_factors(config, 2).tolist() == pytest.approx([1.0] * 6 + [0.97] * 6 + [0.97**2] * 2)
