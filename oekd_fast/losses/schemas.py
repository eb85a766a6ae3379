"""The ops of the compiled backends: definitions, and fake implementations that compute shapes and dtypes.

The library of the CPU kernels (csrc/kernels.cpp) registers the CPU implementations. The CUDA ones are registered here:
they load the Triton kernels when an op is first called. The reference backend needs no op, since it is plain PyTorch.
"""

from __future__ import annotations

from importlib import import_module

import torch

from oekd_fast.common.fake_ops import on_one_device

# The options have the names of EnsembleKDCall.op_kwargs().
#   device_scalars: float32 [3] on the device of the logits, which is read in place of temperature, ce_weight and
#       kd_weight; or [4], and then in place of ensemble_ce_weight too.
#   teacher_logits: K tensors [B, C] of any floating dtype.
#   mix_probabilities: mixing_space == "probabilities".
#   class_weights: floating [C], the option `weight`.
#   num_items: one element of any integer or floating dtype, the divisor of all means.
#   per_row: reduction == "none"; the loss and the statistics but `correct` then have one value a row.
#   divergence, beta: index of the divergence in oekd_fast.losses.checks.DIVERGENCES, and its parameter.
#   standardise_logits: the divergences compare standardised logits.
#   grad_scale: one element, which multiplies the gradients; or with per_row [R], one element a row.
#   weights_grad: a buffer with the shape of ensemble_weights and any floating dtype.
#   isa: instruction set of the CPU kernel; "auto" takes the widest one. Other backends ignore it.
# The logits are S tensors [R, C], or [O, C, I] with the rows r = o I + i. A target of class indices is then [O, I]; it
# has any integer dtype. A target of probabilities has the shape of a student and any floating dtype.
# The statistics are loss, ce [S], kd [S], ensemble_ce and correct int64 [S + 1]; with per_row, the first four are [R],
# [S, R], [S, R] and [R]. Gradients look like the logits.
_OPTIONS = (
    "Tensor? ensemble_weights, float temperature, float ce_weight, float kd_weight, float label_smoothing, "
    "int ignore_index, bool mean, bool detach_ensemble, Tensor? device_scalars=None, float ensemble_ce_weight=0.0, "
    "Tensor[]? teacher_logits=None, Tensor? mixing=None, bool mix_probabilities=False, Tensor? class_weights=None, "
    "Tensor? num_items=None, bool per_row=False, int divergence=0, float beta=0.5, "
    "bool standardise_logits=False"
)
_ARGUMENTS = f"Tensor[] logits, Tensor? target, *, {_OPTIONS}"
_STATISTICS = "Tensor, Tensor, Tensor, Tensor, Tensor"

_library = torch.library.Library("oekd_fast", "DEF")
_library.define(f'ensemble_kd_value({_ARGUMENTS}, str isa="auto") -> ({_STATISTICS})')
_library.define(
    f'ensemble_kd_value_and_grad({_ARGUMENTS}, Tensor? grad_scale=None, str isa="auto") -> ({_STATISTICS}, Tensor[])'
)
_library.define(
    f"ensemble_kd_value_and_grad_out({_ARGUMENTS}, Tensor? grad_scale=None, Tensor(a!)[] out, "
    f'Tensor(b!)? weights_grad=None, str isa="auto") -> ({_STATISTICS})'
)
# The differentiable loss on CUDA. The forward op returns statistics of the rows, from which the backward op computes
# the gradients, and the divisors of the means: the number of counted rows [], or [2] with the sum of the class weights
# of their labels. The backward op returns dL/dw [S], or [0] if weights_grad is false.
_library.define(f"ensemble_kd_value_and_rows({_ARGUMENTS}) -> ({_STATISTICS}, Tensor row_statistics, Tensor counted)")
_library.define(
    f"ensemble_kd_grad_out({_ARGUMENTS}, Tensor row_statistics, Tensor counted, Tensor grad_scale, bool weights_grad, "
    "Tensor(a!)[] out) -> Tensor"
)


def triton_kernels():
    """Load the module that implements each op under the name of the op."""
    return import_module("oekd_fast.kernels.ensemble_kd.launch")


def prepared_launches():
    """Load the module that prepares launches of the Triton kernels."""
    return import_module("oekd_fast.kernels.ensemble_kd.prepare")


def _register_triton(op: str, *devices: str) -> None:
    for device in devices:
        _library.impl(op, lambda *args, **kwargs: getattr(triton_kernels(), op)(*args, **kwargs), device)


for _op in ("ensemble_kd_value", "ensemble_kd_value_and_grad", "ensemble_kd_value_and_grad_out"):
    _register_triton(_op, "CUDA")
for _op in ("ensemble_kd_value_and_rows", "ensemble_kd_grad_out"):
    _register_triton(_op, "CUDA", "CPU")  # on the CPU by Triton's interpreter, in tests


def _fake_statistics(logits, target, per_row=False, **kwargs):
    first, students = logits[0], len(logits)
    rows = (_number_of_rows(first),) if per_row else ()

    def new(*shape, dtype=torch.float32):
        return first.new_empty(shape, dtype=dtype)

    return new(*rows), new(students, *rows), new(students, *rows), new(*rows), new(students + 1, dtype=torch.int64)


def _number_of_rows(student):
    return student.shape[0] if student.dim() == 2 else student.shape[0] * student.shape[2]


def _fake_statistics_and_grads(logits, target, **kwargs):
    return *_fake_statistics(logits, target, **kwargs), [torch.empty_like(z) for z in logits]


def _fake_statistics_and_rows(logits, target, class_weights=None, **kwargs):
    first, width = logits[0], 1 << len(logits).bit_length()
    rows = first.new_empty((_number_of_rows(first), 2, width, 4), dtype=torch.float32)
    weighted = class_weights is not None and target is not None
    counted = first.new_empty((2,) if weighted else (), dtype=torch.float32)
    return *_fake_statistics(logits, target, **kwargs), rows, counted


def _fake_weights_grad(logits, target, *, weights_grad, **kwargs):
    return logits[0].new_empty((len(logits) if weights_grad else 0,), dtype=torch.float32)


for _op, _fake in {
    "ensemble_kd_value": _fake_statistics,
    "ensemble_kd_value_and_grad": _fake_statistics_and_grads,
    "ensemble_kd_value_and_grad_out": _fake_statistics,
    "ensemble_kd_value_and_rows": _fake_statistics_and_rows,
    "ensemble_kd_grad_out": _fake_weights_grad,
}.items():
    torch.library.register_fake(f"oekd_fast::{_op}", on_one_device(_fake), lib=_library)
