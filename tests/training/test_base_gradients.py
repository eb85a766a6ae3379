"""Which losses train the shared base."""

import pytest
import torch

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.training import backward

from ..support.engines import make_batch, make_engine, make_teacher
from ..support.smooth_network import SMOOTH


def gradients(teacher=None, **fields):
    """Return the gradients of one step by name; those of adapters that are not trained are None."""
    objective = "oekd" if teacher is None else "fitnets"
    given = {"num_students": 3, "warmup_epochs": 0, "objective": objective, "teacher": teacher and "given", **fields}
    config = TrainConfig(**given)
    engine = make_engine(config, architecture=SMOOTH, teacher=teacher)
    engine.train_step(*make_batch(16))
    return {name: p.grad for name, p in engine.ensemble.named_parameters()}, engine.metrics.read().as_dict()


@pytest.mark.parametrize(
    ("fields", "external"),
    [
        ({"executor": "sequential"}, False),
        ({"executor": "parallel"}, False),
        ({"detach_ensemble": False}, False),
        ({"detach_ensemble": False, "micro_batches": 2}, False),
        ({"executor": "parallel", "micro_batches": 2}, False),
        ({"executor": "sequential"}, True),
        ({"precision": "bf16"}, False),
    ],
    ids=str,
)
def test_without_features_the_base_has_the_gradients_of_the_logits_alone(fields, external):
    """Bit for bit, and branches and adapters have those of all losses."""
    check_bits(make_teacher() if external else None, fields)


def test_the_passes_of_streams_have_the_same_bits(monkeypatch):
    """The CPU stands in for CUDA, on which one call computes the intermediate loss of all students."""
    monkeypatch.setattr(backward, "backward_in_threads", backward._backward_on_streams)
    check_bits(None, {"executor": "sequential"})


def check_bits(teacher, fields):
    whole, metrics = gradients(teacher, **fields)
    logits, _ = gradients(teacher, feature_weight=0.0, **fields)
    found, found_metrics = gradients(teacher, base_gradients="without_features", **fields)
    assert found_metrics == metrics
    for name, grad in found.items():
        expected = logits if name.startswith("base.") else whole
        assert torch.equal(grad, expected[name]), name
    assert not torch.equal(whole["base.0.weight"], logits["base.0.weight"])
    assert not torch.equal(whole["branches.1.stages.0.0.weight"], logits["branches.1.stages.0.0.weight"])


@pytest.mark.parametrize(
    "fields",
    [
        {"executor": "sequential"},
        {"executor": "parallel", "micro_batches": 2},
        {"detach_ensemble": False, "executor": "sequential"},
        {"detach_ensemble": False, "executor": "sequential", "micro_batches": 2},
        {"objective": "one"},
    ],
    ids=str,
)
def test_the_mean_of_four_students_gives_the_base_a_quarter_of_the_gradients(fields):
    """Bit for bit, since a quarter is a power of two; branches, adapters and the gate have those of the sum.

    With an attached ensemble, autograd adds the students' gradients in the order of the forward pass, which only the
    sequential executor keeps.
    """
    (whole, metrics), (found, found_metrics) = (
        gradients(num_students=4, base_gradients=form, **fields) for form in ("all", "mean")
    )
    assert found_metrics == metrics
    for name, grad in ((name, grad) for name, grad in found.items() if grad is not None):
        expected = whole[name] / 4 if name.startswith("base.") else whole[name]
        assert torch.equal(grad, expected), name


def test_the_mean_of_one_student_is_its_own_gradient():
    alone, mean = (gradients(num_students=1, base_gradients=form)[0] for form in ("all", "mean"))
    assert all(torch.equal(grad, alone[name]) for name, grad in mean.items())


@pytest.mark.parametrize("detach", [True, False])
def test_without_features_and_with_a_frozen_base_only_the_branches_have_gradients(detach):
    grads, _ = gradients(base_gradients="without_features", freeze_base=True, detach_ensemble=detach)
    for name, grad in grads.items():
        assert (grad is None or not grad.any()) == name.startswith("base."), name
