"""The reference backend: second derivatives, an attached ensemble, and the oracle against a case done by hand."""

import math

import numpy as np
import pytest
import torch

from oekd_fast import ensemble_kd_loss
from oekd_fast.losses import reference
from oekd_fast.losses.calls import EnsembleKDCall, KDOptions

from ..conftest import batch
from ..support import oracle

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [2.0, 0.5])
def test_gradcheck_with_the_ensemble_attached(temperature):
    logits, target = batch(students=3, rows=4, classes=5, dtype=torch.float64, scale=1.0)
    target[1] = -100
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64, requires_grad=True)
    options = KDOptions(temperature=temperature, detach_ensemble=False, label_smoothing=0.1)

    def loss(weights, *logits):
        call = EnsembleKDCall.of(logits, target, options, ensemble_weights=weights)
        return reference.ensemble_kd(call).loss

    inputs = (weights, *(z.requires_grad_() for z in logits))
    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)


def test_gradcheck_with_the_ensemble_detached():
    # Finite differences would move the ensemble. Here it is student 1 alone, which is constant.
    logits, target = batch(students=2, rows=4, classes=5, dtype=torch.float64, scale=1.0)
    weights = torch.tensor([0.0, 1.0], dtype=torch.float64)

    def loss(student):
        call = EnsembleKDCall.of([student, logits[1]], target, KDOptions(), ensemble_weights=weights)
        return reference.ensemble_kd(call).loss

    assert torch.autograd.gradcheck(loss, (logits[0].requires_grad_(),))
    assert torch.autograd.gradgradcheck(loss, (logits[0],))


def test_detaching_the_ensemble_changes_the_gradients_only():
    logits, target = batch(students=3, dtype=torch.float64)
    leaves = [z.requires_grad_() for z in logits]
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64, requires_grad=True)
    attached = ensemble_kd_loss(leaves, target, ensemble_weights=weights, detach_ensemble=False)
    detached = ensemble_kd_loss(leaves, target, ensemble_weights=weights)
    assert torch.equal(attached.loss, detached.loss)
    with_ensemble = torch.autograd.grad(attached.loss, [*leaves, weights])
    without = torch.autograd.grad(detached.loss, [*leaves, weights], allow_unused=True)
    assert without[-1] is None and with_ensemble[-1].shape == (3,)
    assert not torch.allclose(with_ensemble[0], without[0])


def test_oracle_by_hand():
    # One row, two students, two classes, T = 1.
    z = [torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[-math.log(3.0), 0.0]])]
    truth = oracle.ensemble_kd(z, torch.tensor([0]), temperature=1.0, ce_weight=1.0, kd_weight=1.0)
    np.testing.assert_allclose(truth.ce, [-math.log(0.75), -math.log(0.25)], rtol=1e-7)
    kl = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    np.testing.assert_allclose(truth.kd, [kl, kl], rtol=1e-6)
    np.testing.assert_allclose(truth.grads[0, 0], [-0.25 + 0.25, 0.25 - 0.25], atol=1e-7)
    np.testing.assert_allclose(truth.grads[1, 0], [-0.75 - 0.25, 0.75 + 0.25], rtol=1e-6)
    assert truth.correct == [1, 0, 1]
