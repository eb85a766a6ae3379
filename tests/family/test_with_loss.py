"""A family and its losses as one module: values, gradients, and what it refuses."""

import copy

import pytest
import torch
from torch import nn

from oekd_fast import EnsembleKDLoss, EnsembleWithLoss, FeatureKDLoss, build_ensemble, ensemble_kd_loss

from ..support.smooth_network import SMOOTH

pytestmark = pytest.mark.usefixtures("one_thread")
ONE = {"temperature": 3.0, "ce_weight": 1.0, "kd_weight": 1.0, "ensemble_ce_weight": 1.0}


def family(**options):
    torch.manual_seed(0)
    return build_ensemble(SMOOTH, 3, 5, **options).double()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.randint(5, (4,), generator=generator)


def gradients(module):
    return {name: p.grad for name, p in module.named_parameters()}


def test_the_logits_loss_alone(batch):
    images, labels = batch
    module = EnsembleWithLoss(family(adapters=False), EnsembleKDLoss(temperature=3.0))
    output = module(images, labels)
    expected = ensemble_kd_loss(family()(images).logits, labels, temperature=3.0)
    assert torch.equal(output.loss, expected.loss) and output.feature is None
    assert all(map(torch.equal, output.statistics, expected))
    assert output.loss.requires_grad and not any(t.requires_grad for t in output.statistics)


def test_the_default_loss_is_that_of_the_paper(batch):
    images, labels = batch
    assert torch.equal(EnsembleWithLoss(family(adapters=False))(images, labels).loss, family_loss(images, labels))


def family_loss(images, labels):
    return ensemble_kd_loss(family()(images).logits, labels).loss


def test_loss_and_gradients_with_features_are_those_of_the_separate_losses(batch):
    images, labels = batch
    module, plain = EnsembleWithLoss(family(), feature_weight=0.25), family()
    result = module(images, labels)
    output = plain(images)
    logits_loss = ensemble_kd_loss(output.logits, labels)
    feature = FeatureKDLoss()(output.features, plain.adapters)
    total = logits_loss.loss + 0.25 * feature
    assert torch.equal(result.loss, total) and torch.equal(result.feature, feature.detach())
    assert torch.equal(result.statistics.loss, logits_loss.loss.detach()) and not result.feature.requires_grad
    result.loss.backward()
    total.backward()
    expected = gradients(plain)
    assert all(torch.equal(grad, expected[name]) for name, grad in gradients(module.ensemble).items())


def test_the_gate_weights_the_students_of_each_image(batch):
    images, labels = batch
    plain = family(gated=True, adapters=False)
    output = EnsembleWithLoss(copy.deepcopy(plain), EnsembleKDLoss(**ONE))(images, labels)
    shared = plain.base(images)
    logits = [branch(shared)[0] for branch in plain.branches]
    expected = ensemble_kd_loss(logits, labels, ensemble_weights=plain.gate(shared), **ONE)
    assert all(map(torch.equal, (output.loss, *output.statistics[1:]), expected))


@pytest.mark.parametrize(
    "options, loss, feature_weight",
    [
        ({"adapters": False}, {}, 0.0),
        ({}, {}, 0.15),
        ({"gated": True, "adapters": False}, ONE, 0.0),
        ({"gated": True}, ONE, 0.15),
        ({"gated": True, "adapters": False}, {"detach_ensemble": False}, 0.0),
        ({"members": (1, 2)}, {}, 0.0),
        ({"members": (0,)}, {"kd_weight": 0.0}, 0.0),
    ],
)
def test_every_parameter_has_a_gradient_and_norms_see_each_batch_once(batch, options, loss, feature_weight):
    module = EnsembleWithLoss(family(**options), EnsembleKDLoss(**loss), feature_weight=feature_weight)
    module(*batch).loss.backward()
    assert [name for name, grad in gradients(module).items() if grad is None] == []
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert {m.num_batches_tracked.item() for m in norms} == {1}


def test_the_feature_weight_may_change_between_steps(batch):
    module = EnsembleWithLoss(family().eval(), feature_weight=0.15)
    for weight in (0.3, 0.0):
        module.feature_weight = weight
        output = module(*batch)
        assert torch.equal(output.loss, output.statistics.loss + weight * output.feature)


def test_the_module_holds_nothing_but_the_family():
    module = EnsembleWithLoss(family(), feature_weight=0.15)
    assert module.state_dict().keys() == {f"ensemble.{name}" for name in family().state_dict()}
    restored = EnsembleWithLoss(family(), feature_weight=0.15)
    restored.load_state_dict(copy.deepcopy(module.state_dict()))


@pytest.mark.parametrize("feature_weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_or_negative_is_refused(feature_weight):
    with pytest.raises(ValueError, match="feature_weight: expected a finite number >= 0, got"):
        EnsembleWithLoss(family(), feature_weight=feature_weight)


def test_parameters_that_no_loss_would_use_are_refused():
    with pytest.raises(ValueError, match=r"feature_weight: expected a number > 0 for a family with adapters, got 0"):
        EnsembleWithLoss(family())
    with pytest.raises(ValueError, match=r"loss: expected ensemble_ce_weight other than 0, or detach_ensemble=False"):
        EnsembleWithLoss(family(gated=True, adapters=False))
    with pytest.raises(ValueError, match="ensemble: expected a family that learns from its own students, got one"):
        EnsembleWithLoss(family(hint_channels=(4, 4, 4)), feature_weight=0.15)
    with pytest.raises(
        ValueError, match="^ensemble: expected a family without helpers, which no loss of this module use"
    ):
        EnsembleWithLoss(family(helpers="critics"), feature_weight=0.15)


def test_a_feature_loss_without_adapters_is_refused():
    with pytest.raises(ValueError, match="feature_weight: expected 0 for a family without adapters, got 0.15"):
        EnsembleWithLoss(family(adapters=False), feature_weight=0.15)


def test_it_runs_in_inference_mode(batch):
    module = EnsembleWithLoss(family(gated=True), EnsembleKDLoss(**ONE), feature_weight=0.15).eval()
    with torch.inference_mode():
        output = module(*batch)
    assert torch.equal(output.loss, module(*batch).loss.detach())
