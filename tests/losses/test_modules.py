"""The loss as a module."""

import pytest
import torch

from oekd_fast import EnsembleKDLoss, ensemble_kd_loss
from oekd_fast.losses.calls import KDOptions

from ..conftest import batch
from ..support.objectives import gate, others, teacher

pytestmark = pytest.mark.usefixtures("one_thread")


def leaves(**options):
    logits, target = batch(**options)
    return [z.requires_grad_() for z in logits], target


def test_module_is_the_function_with_fixed_options(backend):
    options = {"temperature": 3.0, "ce_weight": 0.5, "label_smoothing": 0.1, "reduction": "sum", "ignore_index": 2}
    module = EnsembleKDLoss(backend=backend, **options)
    logits, target = leaves()
    loss = module(logits, target)
    expected = ensemble_kd_loss(logits, target, backend=backend, **options)
    assert torch.equal(loss, expected.loss) and all(map(torch.equal, module.output(logits, target), expected))
    loss.backward()
    assert all(z.grad.any() for z in logits)
    assert torch.equal(module(torch.stack(logits), target), loss)


def test_module_shows_its_options_and_has_nothing_to_train():
    module = EnsembleKDLoss(temperature=4.0)
    assert module.options == KDOptions(temperature=4.0)
    assert "temperature=4.0" in repr(module) and "kd_weight=0.15" in repr(module)
    assert not list(module.parameters()) and not module.state_dict()


def test_module_checks_its_options_at_once():
    with pytest.raises(ValueError, match="temperature: expected a finite number > 0, got 0"):
        EnsembleKDLoss(temperature=0.0)
    with pytest.raises(TypeError, match="temprature"):
        EnsembleKDLoss(temprature=2.0)


def test_module_takes_teachers_and_gates_with_the_batch(backend):
    logits, target = batch(3)
    tensors = {"teacher_logits": teacher(7, 13), "ensemble_weights": gate(7, 3)}
    module = EnsembleKDLoss(ensemble_ce_weight=0.5, backend=backend)
    expected = ensemble_kd_loss(logits, target, ensemble_ce_weight=0.5, backend=backend, **tensors).loss
    assert torch.equal(module(logits, target, **tensors), expected)
    matrix = others(3)
    module = EnsembleKDLoss(mixing=matrix, mixing_space="probabilities", backend=backend)
    assert module.options.mixing is matrix and not module.state_dict()
    expected = ensemble_kd_loss(logits, target, mixing=matrix, mixing_space="probabilities", backend=backend).loss
    assert torch.equal(module(logits, target), expected)
