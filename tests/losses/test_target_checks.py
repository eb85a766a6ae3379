"""Validation of labels, class weights and the number of items: argument, expectation and what was given."""

import math

import pytest
import torch
import torch.nn.functional as F

from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad

from ..support.refusals import TARGET, refuse

SOFT = F.one_hot(TARGET, 4).float()


def soft(row, values):
    target = SOFT.clone()
    target[row] = torch.tensor(values)
    return target


# name: (arguments changed, kind, message)
BAD = {
    "negative": (
        {"target": soft(1, [1.5, -0.5, 0.0, 0.0])},
        ValueError,
        "target: expected probabilities >= 0, got -0.5 at row 1",
    ),
    "NaN": (
        {"target": soft(2, [0.5, math.nan, 0.5, 0.0])},
        ValueError,
        "target: expected probabilities >= 0, got nan at row 2",
    ),
    "sum too large": (
        {"target": soft(0, [1.0, 0.02, 0.0, 0.0])},
        ValueError,
        "target: expected probabilities that sum to 1 in each row, got 1.02 at row 0",
    ),
    "sum infinite": (
        {"target": soft(0, [math.inf, 0.0, 0.0, 0.0])},
        ValueError,
        "target: expected probabilities that sum to 1 in each row, got inf at row 0",
    ),
    "all zero": (
        {"target": torch.zeros(3, 4)},
        ValueError,
        "target: expected probabilities that sum to 1 in each row, got 0 at row 0",
    ),
    "float indices": (
        {"target": TARGET.float()},
        ValueError,
        "target: expected probabilities of shape [3, 4] with dtype torch.float32, for logits of shape [3, 4], got [3]",
    ),
    "indices of the logits' shape": (
        {"target": SOFT.long()},
        ValueError,
        "target: expected class indices of shape [3] with dtype torch.int64, for logits of shape [3, 4], got [3, 4]",
    ),
    "bool": (
        {"target": TARGET.bool()},
        TypeError,
        "target: expected class indices or floating probabilities, got torch.bool",
    ),
    "complex": (
        {"target": SOFT.to(torch.complex64)},
        TypeError,
        "target: expected class indices or floating probabilities, got torch.complex64",
    ),
    "dropped": (
        {"target": None},
        ValueError,
        "target: expected class indices or probabilities (None only if ce_weight is the number 0), got None with "
        "ce_weight 0.7",
    ),
    "label too large": (
        {"target": torch.tensor([0, 4, 1], dtype=torch.int32)},
        ValueError,
        "target: expected labels in [0, 4) or ignore_index -100, got 4 at row 1",
    ),
    "class_dim too large": (
        {"class_dim": 2},
        ValueError,
        "class_dim: expected a number in [-2, 1] for logits of shape [3, 4], got 2",
    ),
    "class_dim too small": (
        {"class_dim": -3},
        ValueError,
        "class_dim: expected a number in [-2, 1] for logits of shape [3, 4], got -3",
    ),
    "class_dim no int": ({"class_dim": 1.0}, TypeError, "class_dim: expected an int, got float"),
    "weights too short": (
        {"weight": torch.ones(3)},
        ValueError,
        "weight: expected shape [4], one weight a class, got [3]",
    ),
    "weights of two dimensions": (
        {"weight": torch.ones(4, 1)},
        ValueError,
        "weight: expected shape [C], one weight a class, got [4, 1]",
    ),
    "weights a list": ({"weight": [1.0] * 4}, TypeError, "weight: expected a tensor [C] or None, got list"),
    "weights of integers": (
        {"weight": torch.ones(4, dtype=torch.int64)},
        TypeError,
        "weight: expected a floating dtype, got torch.int64",
    ),
    "weights that learn": (
        {"weight": torch.ones(4, requires_grad=True)},
        ValueError,
        "weight: expected a tensor that requires no gradient, got requires_grad=True",
    ),
    "weights on another device": (
        {"weight": torch.ones(4, device="meta")},
        ValueError,
        "weight: expected device cpu as the logits, got meta",
    ),
    "negative weights": (
        {"weight": torch.tensor([1.0, -2.0, 1.0, 1.0])},
        ValueError,
        "weight: expected finite numbers >= 0, got -2 for class 1",
    ),
    "weights of NaN": (
        {"weight": torch.tensor([1.0, 1.0, 1.0, math.nan])},
        ValueError,
        "weight: expected finite numbers >= 0, got nan for class 3",
    ),
    "weights of zero": (
        {"weight": torch.zeros(4)},
        ValueError,
        "weight: expected a weight > 0 for at least one class, got 0 for all",
    ),
    "num_items 0": ({"num_items": 0}, ValueError, "num_items: expected a finite number > 0, got 0"),
    "num_items a tensor of 0": (
        {"num_items": torch.tensor(0)},
        ValueError,
        "num_items: expected a finite number > 0, got 0",
    ),
    "num_items infinite": (
        {"num_items": math.inf},
        ValueError,
        "num_items: expected a finite number > 0, got inf",
    ),
    "num_items of two": (
        {"num_items": torch.tensor([1, 2])},
        ValueError,
        "num_items: expected a number or a tensor of one element, got shape [2]",
    ),
    "num_items a word": (
        {"num_items": "3"},
        TypeError,
        "num_items: expected a number or a tensor of one element, got str",
    ),
    "num_items without a mean": (
        {"num_items": 3, "reduction": "sum"},
        ValueError,
        "num_items: expected reduction='mean', whose divisor it replaces, got reduction='sum'",
    ),
    "divergence": (
        {"divergence": "backward"},
        ValueError,
        "divergence: expected one of ('forward', 'reverse', 'js', 'decoupled'), got 'backward'",
    ),
    "beta 0": ({"beta": 0.0}, ValueError, "beta: expected a number in (0, 1), got 0.0"),
    "beta of the decoupled divergence": (
        {"divergence": "decoupled", "beta": -1.0},
        ValueError,
        "beta: expected a finite number >= 0 with divergence='decoupled', got -1.0",
    ),
    "beta a word": ({"beta": "1"}, TypeError, "beta: expected a number, got str"),
    "standardise_logits a number": (
        {"standardise_logits": 1},
        TypeError,
        "standardise_logits: expected a bool, got int",
    ),
}


@pytest.mark.parametrize("function", [ensemble_kd_loss, ensemble_kd_value_and_grad])
@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_refused_in_one_line(name, backend, function):
    changed, kind, message = BAD[name]
    refuse(function, {**changed, "backend": backend}, kind, message)


def test_the_row_of_a_bad_probability_counts_all_positions_of_an_image():
    logits = [torch.zeros(2, 3, 2, 2)] * 2
    target = torch.full((2, 3, 2, 2), 1 / 3)
    target[1, 2, 0, 1] = 2.0
    message = "target: expected probabilities that sum to 1 in each row, got 2.66667 at row 5"
    for backend in ("reference", "auto"):
        refuse(ensemble_kd_loss, {"logits": logits, "target": target, "backend": backend}, ValueError, message)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_probabilities_rounded_to_half_precision_are_taken(dtype):
    target = F.softmax(torch.randn(64, 1000, generator=torch.Generator().manual_seed(0)), dim=1).to(dtype)
    ensemble_kd_loss([torch.zeros(64, 1000)] * 2, target)


def test_grad_scale_a_row_has_the_shape_of_the_rows():
    logits, target = [torch.zeros(2, 3, 4)] * 2, torch.zeros(2, 4, dtype=torch.int64)
    arguments = {"logits": logits, "target": target, "reduction": "none", "grad_scale": torch.ones(8)}
    message = "grad_scale: expected a tensor of one element, or one a row of shape [2, 4], got shape [8]"
    refuse(ensemble_kd_value_and_grad, arguments, ValueError, message)


def test_buffers_that_no_view_fits_are_refused():
    logits, target = [torch.zeros(2, 3, 4, 4)] * 2, torch.zeros(2, 4, 4, dtype=torch.int64)
    out = [torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 5)[..., 1:]]
    message = "out[1]: expected strides as those of logits[1], so that one view fits both, got [60, 20, 5, 1]"
    refuse(ensemble_kd_value_and_grad, {"logits": logits, "target": target, "out": out}, ValueError, message)
