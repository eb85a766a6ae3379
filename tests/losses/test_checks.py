"""Argument validation of the losses: each message names the argument, what was expected and what was given."""

import math

import pytest
import torch

from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad

from ..support.refusals import LOGITS, TARGET, refuse

Z, Y = LOGITS[0], TARGET

# name: (arguments changed, kind, message)
BAD = {
    "no students": ({"logits": []}, ValueError, "logits: expected at least one student, got none"),
    "no students, stacked": (
        {"logits": torch.zeros(0, 3, 4)},
        ValueError,
        "logits: expected at least one student, got none",
    ),
    "no classes": ({"logits": [Z[:, :0]] * 2}, ValueError, "logits: expected at least one class, got C = 0"),
    "one matrix": (
        {"logits": Z},
        ValueError,
        "logits: expected S tensors [B, C] or one [S, B, C], got one of shape [3, 4]",
    ),
    "shapes differ": (
        {"logits": [Z, Z[:, :3]]},
        ValueError,
        "logits[1]: expected shape [3, 4] as logits[0], got [3, 3]",
    ),
    "dtypes differ": (
        {"logits": [Z, Z.bfloat16()]},
        TypeError,
        "logits[1]: expected dtype torch.float32 as logits[0], got torch.bfloat16",
    ),
    "devices differ": (
        {"logits": [Z, Z.to("meta")]},
        ValueError,
        "logits[1]: expected device cpu as logits[0], got meta",
    ),
    "one dimension": ({"logits": [Z[0]]}, ValueError, "logits[0]: expected shape [B, C] or [B, C, d1, ...], got [4]"),
    "no tensor": ({"logits": [Z, [1.0]]}, TypeError, "logits[1]: expected a tensor, got list"),
    "no sequence": (
        {"logits": None},
        TypeError,
        "logits: expected S tensors, one tensor, or an output with the attribute or key 'logits', got NoneType",
    ),
    "integers": (
        {"logits": [Z.long()]},
        TypeError,
        "logits: expected float32, float16, bfloat16 or float64, got torch.int64",
    ),
    "complex": (
        {"logits": [Z.to(torch.complex64)]},
        TypeError,
        "logits: expected float32, float16, bfloat16 or float64, got torch.complex64",
    ),
    "target a list": ({"target": [0, 1, 2]}, TypeError, "target: expected a tensor, got list"),
    "target on another device": (
        {"target": Y.to("meta")},
        ValueError,
        "target: expected device cpu as the logits, got meta",
    ),
    "no target": (
        {"target": None},
        ValueError,
        "target: expected class indices or probabilities (None only if ce_weight is the number 0), got None with "
        "ce_weight 0.7",
    ),
    "no target, ce_weight in a tensor": (
        {"target": None, "ce_weight": torch.tensor(0.0)},
        ValueError,
        "target: expected class indices or probabilities (None only if ce_weight is the number 0), got None with a "
        "tensor as ce_weight",
    ),
    "temperature 0": ({"temperature": 0.0}, ValueError, "temperature: expected a finite number > 0, got 0.0"),
    "temperature -1": ({"temperature": -1}, ValueError, "temperature: expected a finite number > 0, got -1"),
    "temperature nan": ({"temperature": math.nan}, ValueError, "temperature: expected a finite number > 0, got nan"),
    "temperature inf": ({"temperature": math.inf}, ValueError, "temperature: expected a finite number > 0, got inf"),
    "temperature text": (
        {"temperature": "2"},
        TypeError,
        "temperature: expected a number or a tensor of one element, got str",
    ),
    "ce_weight nan": ({"ce_weight": math.nan}, ValueError, "ce_weight: expected a finite number, got nan"),
    "kd_weight inf": ({"kd_weight": math.inf}, ValueError, "kd_weight: expected a finite number, got inf"),
    "temperatures": (
        {"temperature": torch.ones(2)},
        ValueError,
        "temperature: expected a number or a tensor of one element, got shape [2]",
    ),
    "temperature an empty tensor": (
        {"temperature": torch.ones(0)},
        ValueError,
        "temperature: expected a number or a tensor of one element, got shape [0]",
    ),
    "temperature of integers": (
        {"temperature": torch.tensor(2)},
        TypeError,
        "temperature: expected a floating dtype, got torch.int64",
    ),
    "ce_weight on another device": (
        {"ce_weight": torch.ones((), device="meta")},
        ValueError,
        "ce_weight: expected device cpu as the logits, got meta",
    ),
    "kd_weight a list": (
        {"kd_weight": [0.5]},
        TypeError,
        "kd_weight: expected a number or a tensor of one element, got",
    ),
    "temperature 0 in a tensor": (
        {"temperature": torch.tensor(0.0)},
        ValueError,
        "temperature: expected a finite number > 0, got 0",
    ),
    "temperature nan in a tensor": (
        {"temperature": torch.tensor(math.nan)},
        ValueError,
        "temperature: expected a finite number > 0, got nan",
    ),
    "ce_weight inf in a tensor": (
        {"ce_weight": torch.tensor(math.inf)},
        ValueError,
        "ce_weight: expected a finite number, got inf",
    ),
    "kd_weight nan in a tensor": (
        {"kd_weight": torch.tensor(math.nan)},
        ValueError,
        "kd_weight: expected a finite number, got nan",
    ),
    "smoothing in a tensor": (
        {"label_smoothing": torch.tensor(0.1)},
        TypeError,
        "label_smoothing: expected a number, got Tensor",
    ),
    "smoothing 1.5": ({"label_smoothing": 1.5}, ValueError, "label_smoothing: expected a number in [0, 1], got 1.5"),
    "smoothing nan": (
        {"label_smoothing": math.nan},
        ValueError,
        "label_smoothing: expected a number in [0, 1], got nan",
    ),
    "reduction unknown": (
        {"reduction": "batchmean"},
        ValueError,
        "reduction: expected one of ('mean', 'sum', 'none'), got 'batchmean'",
    ),
    "weights of other length": (
        {"ensemble_weights": torch.ones(3)},
        ValueError,
        "ensemble_weights: expected shape [2], one a student, or a gate [3, 2], one a row and student, got [3]",
    ),
    "weights a matrix": (
        {"ensemble_weights": torch.ones(1, 2)},
        ValueError,
        "ensemble_weights: expected shape [2], one a student, or a gate [3, 2], one a row and student, got [1, 2]",
    ),
    "a gate transposed": (
        {"ensemble_weights": torch.ones(2, 3)},
        ValueError,
        "ensemble_weights: expected shape [2], one a student, or a gate [3, 2], one a row and student, got [2, 3]",
    ),
    "a gate beside mixing": (
        {"ensemble_weights": torch.ones(3, 2), "mixing": torch.eye(2)},
        ValueError,
        "ensemble_weights: expected shape [2] beside mixing, which makes the targets, got [3, 2]",
    ),
    "a gate for one student": (
        {"logits": [Z], "ensemble_weights": torch.ones(3)},
        ValueError,
        "ensemble_weights: expected shape [1], one a student, or a gate [3, 1], one a row and student, got [3]",
    ),
    "no target, the ensemble's cross-entropy": (
        {"target": None, "ce_weight": 0.0, "ensemble_ce_weight": 0.5},
        ValueError,
        "target: expected class indices or probabilities (None only if ensemble_ce_weight is the number 0), got None "
        "with ensemble_ce_weight 0.5",
    ),
    "ensemble_ce_weight nan": (
        {"ensemble_ce_weight": math.nan},
        ValueError,
        "ensemble_ce_weight: expected a finite number, got nan",
    ),
    "ensemble_ce_weight on another device": (
        {"ensemble_ce_weight": torch.ones((), device="meta")},
        ValueError,
        "ensemble_ce_weight: expected device cpu as the logits, got meta",
    ),
    "teacher of other shape": (
        {"teacher_logits": Z[:, :3]},
        ValueError,
        "teacher_logits: expected shape [3, 4] as a student's logits, got [3, 3]",
    ),
    "teacher of integers": (
        {"teacher_logits": Z.long()},
        TypeError,
        "teacher_logits: expected float32, float16, bfloat16 or float64, got torch.int64",
    ),
    "teacher a number": (
        {"teacher_logits": 3.0},
        TypeError,
        "teacher_logits: expected a tensor or a sequence of tensors, got float",
    ),
    "teacher a row": (
        {"teacher_logits": Z[0]},
        ValueError,
        "teacher_logits: expected shape [3, 4], or [K, 3, 4] for K teachers, got [4]",
    ),
    "no teachers": (
        {"teacher_logits": []},
        ValueError,
        "teacher_logits: expected at least one teacher, got none",
    ),
    "second teacher of other shape": (
        {"teacher_logits": [Z, Z[:2]], "mixing": torch.ones(2, 4)},
        ValueError,
        "teacher_logits[1]: expected shape [3, 4] as a student's logits, got [2, 4]",
    ),
    "second teacher a list": (
        {"teacher_logits": (Z, [1.0]), "mixing": torch.ones(2, 4)},
        TypeError,
        "teacher_logits[1]: expected a tensor, got list",
    ),
    "two teachers without mixing": (
        {"teacher_logits": torch.stack([Z, Z])},
        ValueError,
        "mixing: expected shape [2, 4] with 2 external teachers, got None",
    ),
    "mixing of one teacher too few": (
        {"teacher_logits": [Z, Z], "mixing": torch.ones(2, 3)},
        ValueError,
        "mixing: expected shape [2, 4] = [students, students + teachers], got [2, 3]",
    ),
    "teacher on another device": (
        {"teacher_logits": Z.to("meta")},
        ValueError,
        "teacher_logits: expected device cpu as the logits, got meta",
    ),
    "mixing of other shape": (
        {"mixing": torch.eye(3)},
        ValueError,
        "mixing: expected shape [2, 2] = [students, students + teachers], got [3, 3]",
    ),
    "mixing without the teacher": (
        {"mixing": torch.eye(2), "teacher_logits": Z},
        ValueError,
        "mixing: expected shape [2, 3] = [students, students + teachers], got [2, 2]",
    ),
    "mixing of a missing teacher": (
        {"mixing": torch.ones(2, 3)},
        ValueError,
        "mixing: expected shape [2, 2] = [students, students + teachers], got [2, 3]",
    ),
    "mixing a row": (
        {"mixing": torch.ones(2)},
        ValueError,
        "mixing: expected a matrix, a row for each student, got shape [2]",
    ),
    "mixing of integers": (
        {"mixing": torch.eye(2).long()},
        TypeError,
        "mixing: expected a floating dtype, got torch.int64",
    ),
    "mixing a list": ({"mixing": [[0, 1]]}, TypeError, "mixing: expected a tensor [S, S] or None, got list"),
    "mixing on another device": (
        {"mixing": torch.eye(2, device="meta")},
        ValueError,
        "mixing: expected device cpu as the logits, got meta",
    ),
    "mixing with the ensemble attached": (
        {"mixing": torch.eye(2), "detach_ensemble": False},
        ValueError,
        "mixing: expected detach_ensemble=True beside it, got detach_ensemble=False",
    ),
    "mixing_space without mixing": (
        {"mixing_space": "probabilities"},
        ValueError,
        "mixing_space: expected mixing beside 'probabilities', got mixing None",
    ),
    "mixing_space unknown": (
        {"mixing": torch.eye(2), "mixing_space": "logit"},
        ValueError,
        "mixing_space: expected one of ('logits', 'probabilities'), got 'logit'",
    ),
    "weights a list": ({"ensemble_weights": [0.5, 0.5]}, TypeError, "ensemble_weights: expected a tensor, got list"),
    "weights of integers": (
        {"ensemble_weights": torch.ones(2, dtype=torch.int64)},
        TypeError,
        "ensemble_weights: expected a floating dtype, got torch.int64",
    ),
    "weights on another device": (
        {"ensemble_weights": torch.ones(2, device="meta")},
        ValueError,
        "ensemble_weights: expected device cpu as the logits, got meta",
    ),
}
BAD_VALUE_AND_GRAD = {
    "grad_scale of two": (
        {"grad_scale": torch.ones(2)},
        ValueError,
        "grad_scale: expected a tensor of one element, got shape [2]",
    ),
    "grad_scale a number": ({"grad_scale": 2.0}, TypeError, "grad_scale: expected a tensor, got float"),
    "grad_scale on another device": (
        {"grad_scale": torch.ones((), device="meta")},
        ValueError,
        "grad_scale: expected device cpu as the logits, got meta",
    ),
    "weights_grad without weights": (
        {"weights_grad": torch.ones(2)},
        ValueError,
        "weights_grad: expected ensemble_weights beside it, got ensemble_weights None",
    ),
    "weights_grad of other shape": (
        {"weights_grad": torch.ones(2), "ensemble_weights": torch.ones(3, 2)},
        ValueError,
        "weights_grad: expected shape [3, 2] as ensemble_weights, got [2]",
    ),
    "weights_grad of other dtype": (
        {"weights_grad": torch.ones(2).double(), "ensemble_weights": torch.ones(2)},
        TypeError,
        "weights_grad: expected dtype torch.float32 as ensemble_weights, got torch.float64",
    ),
    "weights_grad whose rows are one": (
        {"weights_grad": torch.ones(2).expand(3, 2), "ensemble_weights": torch.ones(3, 2)},
        ValueError,
        "weights_grad: expected separate memory for every element, got strides [0, 1]",
    ),
    "weights_grad a list": (
        {"weights_grad": [0.0, 0.0], "ensemble_weights": torch.ones(2)},
        TypeError,
        "weights_grad: expected a tensor, got list",
    ),
    "one buffer": ({"out": [Z]}, ValueError, "out: expected 2 buffers, one a student, got 1"),
    "buffer of other shape": (
        {"out": [Z.clone(), Z[:2].clone()]},
        ValueError,
        "out[1]: expected shape [3, 4] as logits[1], got [2, 4]",
    ),
    "buffer of other dtype": (
        {"out": [Z.half(), Z.clone()]},
        TypeError,
        "out[0]: expected dtype torch.float32 as logits[0], got torch.float16",
    ),
    "buffer on another device": (
        {"out": [Z.to("meta"), Z.clone()]},
        ValueError,
        "out[0]: expected device cpu as logits[0], got meta",
    ),
    "buffers no tensors": ({"out": [Z.clone(), None]}, TypeError, "out[1]: expected a tensor, got NoneType"),
    "buffer whose rows are one": (
        {"out": [torch.zeros(1, 4).expand(3, 4), Z.clone()]},
        ValueError,
        "out[0]: expected separate memory for every element, got strides [0, 1]",
    ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("function", [ensemble_kd_loss, ensemble_kd_value_and_grad])
def test_arguments(function, name, backend):
    refuse(function, *BAD[name], backend=backend)


@pytest.mark.parametrize("name", BAD_VALUE_AND_GRAD)
def test_arguments_of_value_and_grad(name, backend):
    refuse(ensemble_kd_value_and_grad, *BAD_VALUE_AND_GRAD[name], backend=backend)
