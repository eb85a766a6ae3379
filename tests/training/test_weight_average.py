"""The moving average of a family's weights."""

import torch

from bench.operations.count import DeviceOperations
from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.training.weight_average import WeightAverage


def test_weights_move_by_their_share_and_counters_are_copied():
    ensemble = build_ensemble("resnet20", 2)
    average = WeightAverage(ensemble)
    start = {name: value.clone() for name, value in ensemble.state_dict().items()}
    with torch.no_grad():
        for value in ensemble.state_dict().values():
            value.add_(4)
    with DeviceOperations() as counted:
        average.update(torch.tensor(0.25))
    assert counted.kinds.total() == 4  # for any number of layers
    for name, value in average.ensemble.state_dict().items():
        moved = 1.0 if value.is_floating_point() else 4
        torch.testing.assert_close(value, start[name] + moved)
    for name, value in ensemble.state_dict().items():
        torch.testing.assert_close(value, start[name] + 4)


def test_the_average_stays_in_evaluation_mode_without_gradients():
    ensemble = build_ensemble("resnet20", 2).train()
    average = WeightAverage(ensemble)
    assert not any(module.training for module in average.ensemble.modules())
    assert not any(p.requires_grad for p in average.ensemble.parameters())
    assert all(p.requires_grad for p in ensemble.parameters())
    average.update(torch.tensor(0.5))
    assert not average.ensemble.training and ensemble.training


def test_a_share_of_1_copies_the_weights():
    ensemble = build_ensemble("resnet20", 1)
    average = WeightAverage(ensemble)
    with torch.no_grad():
        for p in ensemble.parameters():
            p.mul_(1.1)
    average.update(torch.tensor(1.0))
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(average.ensemble(images).logits, ensemble.eval()(images).logits)
