"""Outputs of networks as the first argument of the loss."""

from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch

from oekd_fast import EnsembleKDLoss, build_ensemble, ensemble_kd_loss
from oekd_fast.family.ensemble import EnsembleOutput

from ..support.refusals import LOGITS, TARGET, refuse

FORMS = {
    "EnsembleOutput": lambda: EnsembleOutput(tuple(LOGITS), ()),
    "mapping": lambda: OrderedDict(loss=None, logits=LOGITS),
    "mapping, stacked": lambda: {"logits": torch.stack(LOGITS)},
    "object": lambda: SimpleNamespace(logits=tuple(LOGITS)),
    "list": lambda: LOGITS,
    "stacked": lambda: torch.stack(LOGITS),
}


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_found_in_every_form(form):
    right = ensemble_kd_loss(LOGITS, TARGET)
    assert all(torch.equal(a, b) for a, b in zip(ensemble_kd_loss(FORMS[form](), TARGET), right, strict=True))
    assert torch.equal(EnsembleKDLoss()(FORMS[form](), TARGET, num_items_in_batch=None), right.loss)


def test_the_output_of_a_family_is_taken_as_it_is():
    ensemble = build_ensemble("resnet20", num_students=2, num_classes=4)
    output = ensemble(torch.randn(3, 3, 8, 8))
    EnsembleKDLoss()(output, TARGET).backward()
    assert all(head.grad is not None for head in (p for n, p in ensemble.named_parameters() if n.endswith("fc.bias")))


def test_a_mapping_without_logits_is_refused():
    message = "logits: expected a mapping with the key 'logits', got one with ['loss', 'hidden_states']"
    refuse(ensemble_kd_loss, {"logits": {"loss": None, "hidden_states": ()}}, ValueError, message)


def test_an_object_without_logits_is_refused():
    message = "logits: expected S tensors, one tensor, or an output with the attribute or key 'logits', got NoneType"
    refuse(ensemble_kd_loss, {"logits": None}, TypeError, message)
