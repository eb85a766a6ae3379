"""Parameter groups and the learning rate of each step."""

import math

import pytest
import torch

from oekd_fast.config import TrainConfig
from oekd_fast.ensemble import build_ensemble
from oekd_fast.optim import RateSchedule, build_optimizer, rate_factor


def test_adapters_are_trained_at_half_the_rate():
    ensemble = build_ensemble("resnet20", 3)
    optimizer = build_optimizer(TrainConfig(learning_rate=0.2), ensemble)
    networks, adapters = optimizer.param_groups
    assert (networks["lr"], adapters["lr"]) == (0.2, 0.1)
    assert {id(p) for p in adapters["params"]} == {id(p) for p in ensemble.adapters.parameters()}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(ensemble.parameters()))


def test_a_baseline_has_one_group():
    optimizer = build_optimizer(TrainConfig(), build_ensemble("resnet20", 3, members=(1,)))
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_sgd_is_nesterov_and_agrees_with_the_plain_rule(momentum):
    config = TrainConfig(learning_rate=0.1, momentum=momentum, weight_decay=0.01)
    ensemble = build_ensemble("resnet20", 1)
    optimizer = build_optimizer(config, ensemble)
    weight = ensemble.branches[0].classifier.weight
    expected, velocity = weight.detach().double().clone(), 0.0
    for step in range(3):
        gradient = torch.full_like(weight, 0.5 + step)
        weight.grad = gradient.clone()
        optimizer.step()
        g = gradient.double() + 0.01 * expected
        velocity = momentum * velocity + g
        expected -= 0.1 * (g + momentum * velocity)
    torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-6, atol=1e-7)


def test_multistep_falls_at_its_milestones_after_a_linear_warm_up():
    config = TrainConfig(epochs=8, warmup_epochs=1, milestones=(0.5, 0.75), decay=0.1)
    factors = [rate_factor(config, 4, step) for step in range(32)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:16] == [1.0] * 12
    assert factors[16:24] == pytest.approx([0.1] * 8)
    assert factors[24:] == pytest.approx([0.01] * 8)


def test_cosine_ends_near_zero():
    config = TrainConfig(epochs=10, warmup_epochs=0, schedule="cosine")
    factors = [rate_factor(config, 10, step) for step in range(100)]
    assert factors == sorted(factors, reverse=True)
    assert factors[0] == 1.0 and factors[50] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))
    assert rate_factor(config, 10, 100) == pytest.approx(0.0, abs=1e-12)


def test_the_schedule_continues_from_its_state():
    config = TrainConfig(epochs=4, schedule="cosine")
    ensemble = build_ensemble("resnet20", 2)

    def rates(schedule, optimizer, steps):
        found = []
        for _ in range(steps):
            found.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            schedule.step()
        return found

    optimizer = build_optimizer(config, ensemble)
    schedule = RateSchedule(config, optimizer, 5)
    straight = rates(schedule, optimizer, 20)

    optimizer = build_optimizer(config, ensemble)
    schedule = RateSchedule(config, optimizer, 5)
    first = rates(schedule, optimizer, 7)
    saved = schedule.state_dict(), optimizer.state_dict()
    optimizer = build_optimizer(config, ensemble)
    schedule = RateSchedule(config, optimizer, 5)
    schedule.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    assert first + rates(schedule, optimizer, 13) == straight
