"""Parameter groups of the optimizers, and updates with learning rates on the device."""

import copy

import pytest
import torch

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.training.optimizer import OptimizerState, build_optimizer


def rates(networks=0.1, adapters=0.05):
    return torch.tensor(networks), torch.tensor(adapters)


def test_adapters_have_their_own_learning_rate():
    ensemble = build_ensemble("resnet20", 3)
    given = rates()
    optimizer = build_optimizer(TrainConfig(), ensemble, *given)
    networks, adapters = optimizer.param_groups
    assert networks["lr"] is given[0] and adapters["lr"] is given[1]
    assert {id(p) for p in adapters["params"]} == {id(p) for p in ensemble.adapters.parameters()}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(ensemble.parameters()))


def test_a_baseline_has_one_parameter_group():
    optimizer = build_optimizer(TrainConfig(), build_ensemble("resnet20", 3, members=(1,)), *rates())
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_sgd_agrees_with_the_rule_of_nesterov_momentum(momentum):
    config = TrainConfig(momentum=momentum, weight_decay=0.01)
    ensemble = build_ensemble("resnet20", 1)
    rate = torch.tensor(0.1)
    optimizer = build_optimizer(config, ensemble, rate, rate)
    weight = ensemble.branches[0].classifier.weight
    expected, velocity = weight.detach().double().clone(), 0.0
    for step in range(3):
        rate.fill_(0.1 * (step + 1))  # as the schedule does before a replayed step
        gradient = torch.full_like(weight, 0.5 + step)
        weight.grad = gradient.clone()
        optimizer.step()
        g = gradient.double() + 0.01 * expected
        velocity = momentum * velocity + g
        expected -= 0.1 * (step + 1) * (g + momentum * velocity)
    torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_loaded_state_continues_and_keeps_the_tensors_of_the_rates(name):
    def run(optimizer, ensemble, steps):
        for step in range(steps):
            for p in ensemble.parameters():
                p.grad = torch.full_like(p, 0.1 * (step + 1))
            optimizer.step()

    def make():
        torch.manual_seed(0)
        ensemble = build_ensemble("resnet20", 2)
        return ensemble, build_optimizer(TrainConfig(optimizer=name), ensemble, *rates())

    ensemble, optimizer = make()
    run(optimizer, ensemble, 2)
    other, continued = make()
    other.load_state_dict(ensemble.state_dict())
    before = [group["lr"] for group in continued.param_groups]
    saved = copy.deepcopy(OptimizerState(optimizer, ensemble).state_dict())
    OptimizerState(continued, other).load_state_dict(saved)
    assert all(group["lr"] is rate for group, rate in zip(continued.param_groups, before, strict=True))
    run(optimizer, ensemble, 1)
    run(continued, other, 1)
    for one, two in zip(ensemble.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    tensors = OptimizerState(optimizer, ensemble).tensors()
    assert OptimizerState(continued, other).tensors().keys() == tensors.keys()
    assert len(tensors) == {"sgd": 1, "adam": 3}[name] * len(list(ensemble.parameters()))
