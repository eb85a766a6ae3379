"""The options of the loss, and the call object: what it derives from the arguments and passes to the ops."""

import dataclasses

import pytest
import torch

from oekd_fast.losses.calls import EnsembleKDCall, KDOptions

from ..conftest import batch


def call(options=None, students=3, **tensors):
    logits, target = batch(students=students)
    return EnsembleKDCall.of(logits, target, options or KDOptions(), **tensors)


def test_options_and_calls_are_frozen():
    for made, name in ((KDOptions(), "temperature"), (call(), "target")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, name, 3.0)


def test_the_default_options_are_those_of_the_paper():
    options = KDOptions()
    assert (options.temperature, options.ce_weight, options.kd_weight) == (2.0, 0.7, 0.15)
    assert (options.ensemble_ce_weight, options.mixing, options.mixing_space) == (0.0, None, "logits")


def test_a_tensor_as_ensemble_ce_weight_counts_as_a_weight_other_than_zero():
    assert not KDOptions().ensemble_learns
    assert KDOptions(ensemble_ce_weight=0.5).ensemble_learns
    assert KDOptions(ensemble_ce_weight=torch.zeros(())).ensemble_learns


def test_options_hold_tensors_without_a_copy():
    kd_weight = torch.tensor([0.5])
    assert KDOptions(kd_weight=kd_weight).kd_weight is kd_weight


def test_one_tensor_of_logits_is_split_into_students_and_kept():
    logits, target = batch(students=3)
    stacked = torch.stack(logits)
    made = EnsembleKDCall.of(stacked, target, KDOptions())
    assert made.stacked is stacked and made.inputs == (stacked,)
    assert [z.data_ptr() for z in made.students] == [z.data_ptr() for z in stacked.unbind(0)]
    made = EnsembleKDCall.of(logits, target, KDOptions())
    assert made.stacked is None and all(a is b for a, b in zip(made.inputs, logits, strict=True))


def test_the_ops_are_passed_numbers_by_name():
    kwargs = call(KDOptions(temperature=3, ce_weight=1, reduction="sum", ignore_index=7)).op_kwargs()
    assert kwargs.pop("target").shape == (7,)
    assert kwargs == {
        "ensemble_weights": None,
        "temperature": 3.0,
        "ce_weight": 1.0,
        "kd_weight": 0.15,
        "label_smoothing": 0.0,
        "ignore_index": 7,
        "mean": False,
        "detach_ensemble": True,
    }
    assert isinstance(kwargs["temperature"], float)


@pytest.mark.parametrize("ensemble_ce_weight, scalars", [(0.0, [3.0, 0.5, 0.15]), (0.25, [3.0, 0.5, 0.15, 0.25])])
def test_numbers_beside_a_tensor_travel_as_one_tensor(ensemble_ce_weight, scalars):
    temperature = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    options = KDOptions(temperature=temperature, ce_weight=0.5, ensemble_ce_weight=ensemble_ce_weight)
    kwargs = call(options).op_kwargs()
    assert kwargs["temperature"] == kwargs["ce_weight"] == kwargs["kd_weight"] == 0.0
    assert "ensemble_ce_weight" not in kwargs
    assert torch.equal(kwargs["device_scalars"], torch.tensor(scalars)) and not kwargs["device_scalars"].requires_grad
    with torch.no_grad():
        temperature.fill_(5.0)
    assert kwargs["device_scalars"][0] == 3.0


def test_tensors_of_other_objectives_are_passed_without_their_graph():
    tensors = {
        "ensemble_weights": torch.full((3,), 1 / 3, requires_grad=True),
        "teacher_logits": torch.zeros(7, 13, requires_grad=True),
    }
    mixing = torch.eye(3, 4, requires_grad=True)
    kwargs = call(KDOptions(mixing=mixing, mixing_space="probabilities"), **tensors).op_kwargs()
    (kwargs["teacher_logits"],) = kwargs["teacher_logits"]
    for name, tensor in {**tensors, "mixing": mixing}.items():
        assert torch.equal(kwargs[name], tensor) and not kwargs[name].requires_grad
    assert kwargs["mix_probabilities"] is True


def test_an_external_teacher_replaces_an_attached_ensemble():
    options = KDOptions(detach_ensemble=False)
    assert call(options).ensemble_attached and not call(options).op_kwargs()["detach_ensemble"]
    taught = call(options, teacher_logits=torch.zeros(7, 13))
    assert not taught.ensemble_attached and taught.op_kwargs()["detach_ensemble"]


@pytest.mark.parametrize(
    "options, expected",
    [({}, False), ({"detach_ensemble": False}, True), ({"ensemble_ce_weight": 0.5}, True)],
    ids=str,
)
def test_weights_need_a_gradient_only_if_the_loss_depends_on_them(options, expected):
    weights = torch.full((3,), 1 / 3)
    assert not call(KDOptions(**options), ensemble_weights=weights).weights_need_grad
    assert call(KDOptions(**options), ensemble_weights=weights.requires_grad_()).weights_need_grad == expected
    assert not call(KDOptions(**options)).weights_need_grad


def test_the_extensions_of_the_papers_objective_are_named():
    assert call(ensemble_weights=torch.ones(3)).extensions == []
    made = call(KDOptions(ensemble_ce_weight=0.5), ensemble_weights=torch.ones(7, 3), teacher_logits=torch.zeros(7, 13))
    assert made.extensions == ["a gate", "ensemble_ce_weight", "teacher_logits"]
    assert call(KDOptions(mixing=torch.eye(3))).extensions == ["mixing"]
