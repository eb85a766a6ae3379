"""The ops of the compiled backends, and which backend takes a call.

Compiled backends register implementations of the ops below with ``torch.library`` for their device (CPU: csrc/;
CUDA: kernels/). The reference needs no op: it is plain PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from oekd_fast import native
from oekd_fast.losses.calls import KDOptions

BACKENDS = ("auto", "reference", "native", "triton")
COMPILED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_TRITON_STUDENTS = 62  # one bit each of an integer, and the ensemble's; beyond 16, registers spill

# Statistics are (loss, ce [S], kd [S], ensemble_ce, correct int64 [S + 1]); gradients look like the logits.
# values: fp32 [3] on the logits' device, read in place of temperature, ce_weight and kd_weight; or [4], and
# ensemble_ce_weight. mix_probabilities: mixes="probabilities". weights_grad: floating, as ensemble_weights.
# isa: "auto", or an instruction set of the CPU kernel, so that each can be tested and compared.
_OPTIONS = (
    "Tensor[] logits, Tensor? target, Tensor? ensemble_weights, float temperature, float ce_weight, float kd_weight, "
    "float label_smoothing, int ignore_index, bool mean, bool detach_ensemble, Tensor? values=None, "
    "float ensemble_ce_weight=0.0, Tensor? teacher_logits=None, Tensor? mixing=None, bool mix_probabilities=False"
)
_STATISTICS = "Tensor, Tensor, Tensor, Tensor, Tensor"
_library = torch.library.Library("oekd_fast", "DEF")
_library.define(f'ensemble_kd_value({_OPTIONS}, *, str isa="auto") -> ({_STATISTICS})')
_library.define(
    f'ensemble_kd_value_and_grad({_OPTIONS}, *, Tensor? grad_scale=None, str isa="auto") -> ({_STATISTICS}, Tensor[])'
)
_library.define(
    f"ensemble_kd_value_and_grad_out({_OPTIONS}, *, Tensor? grad_scale=None, Tensor(a!)[] out, "
    f'Tensor(b!)? weights_grad=None, str isa="auto") -> ({_STATISTICS})'
)
# The differentiable form on CUDA: statistics of the rows forward, gradients from them backward; last, dL/dw [S] or [0].
_library.define(f"ensemble_kd_value_and_rows({_OPTIONS}) -> ({_STATISTICS}, Tensor row_statistics, Tensor counted)")
_library.define(
    f"ensemble_kd_grad_out({_OPTIONS}, *, Tensor row_statistics, Tensor counted, Tensor grad_scale, bool weights_grad, "
    "Tensor(a!)[] out) -> Tensor"
)


def _why_no_triton() -> str | None:
    """Triton is looked for here and loaded at its first launch: it takes a second."""
    return None if find_spec("triton") else "No module named 'triton'; install triton >= 3.6 (Linux)"


def triton_kernels():
    """The module with an implementation of each op, under the op's name."""
    return import_module("oekd_fast.kernels.ensemble_kd.launch")


def _register_triton(op: str, *devices: str) -> None:
    for device in devices:
        _library.impl(op, lambda *args, **kwargs: getattr(triton_kernels(), op)(*args, **kwargs), device)


for _op in ("ensemble_kd_value", "ensemble_kd_value_and_grad", "ensemble_kd_value_and_grad_out"):
    _register_triton(_op, "CUDA")  # the CPU's are native
for _op in ("ensemble_kd_value_and_rows", "ensemble_kd_grad_out"):
    _register_triton(_op, "CUDA", "CPU")  # interpreted there


_MISSING = {"native": native.why_missing(), "triton": _why_no_triton()}


def _fake_statistics(logits, *args, **kwargs):
    first, students = logits[0], len(logits)

    def new(*shape, dtype=torch.float32):
        return first.new_empty(shape, dtype=dtype)

    return new(), new(students), new(students), new(), new(students + 1, dtype=torch.int64)


def _fake_statistics_and_grads(logits, *args, **kwargs):
    return *_fake_statistics(logits), [torch.empty_like(z) for z in logits]


def _fake_statistics_and_rows(logits, *args, **kwargs):
    first, width = logits[0], 1 << len(logits).bit_length()
    rows = first.new_empty((first.shape[0], 2, width, 4), dtype=torch.float32)
    return *_fake_statistics(logits), rows, first.new_empty((), dtype=torch.float32)


def _fake_weights_grad(logits, *args, weights_grad, **kwargs):
    return logits[0].new_empty((len(logits) if weights_grad else 0,), dtype=torch.float32)


for _op, _fake in {
    "ensemble_kd_value": _fake_statistics,
    "ensemble_kd_value_and_grad": _fake_statistics_and_grads,
    "ensemble_kd_value_and_grad_out": _fake_statistics,
    "ensemble_kd_value_and_rows": _fake_statistics_and_rows,
    "ensemble_kd_grad_out": _fake_weights_grad,
}.items():
    torch.library.register_fake(f"oekd_fast::{_op}", _fake, lib=_library)


def choose_backend(
    backend: str,
    students: list[Tensor],
    options: KDOptions,
    ensemble_weights: Tensor | None,
    teacher_logits: Tensor | None,
) -> str:
    """The backend that takes a call: a name other than "auto".

    Raises:
        ValueError, RuntimeError: the backend asked for does not cover the call, or is not there.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {BACKENDS}, got {backend!r}")
    if backend == "reference":
        return backend
    device = students[0].device.type
    compiled = {"cpu": "native", "cuda": "triton"}.get(device)
    if backend == "auto":
        call = (students, options, ensemble_weights, teacher_logits)
        covered = compiled and not _uncovered(compiled, *call) and not _MISSING[compiled]
        return compiled if covered else "reference"
    if why := _MISSING[backend]:
        raise RuntimeError(f"backend {backend!r} is not there: {why}")
    interpreted = backend == "triton" and device == "cpu" and triton_kernels().INTERPRETED
    if backend != compiled and not interpreted:
        on = {
            "native": "the CPU",
            "triton": "CUDA (or on the CPU with TRITON_INTERPRET=1 set before the first use, for tests: slow)",
        }[backend]
        raise ValueError(f"backend {backend!r}: expected logits on {on}, got {students[0].device}")
    if why := _uncovered(backend, students, options, ensemble_weights, teacher_logits):
        raise ValueError(f"backend {backend!r}: {why}; backend='reference' does this")
    return backend


def _uncovered(
    backend: str,
    students: list[Tensor],
    options: KDOptions,
    ensemble_weights: Tensor | None,
    teacher_logits: Tensor | None,
) -> str | None:
    if students[0].dtype not in COMPILED_DTYPES:
        return f"expected float32, bfloat16 or float16 logits, got {students[0].dtype}"
    if backend == "native":
        if ensemble_attached(options, teacher_logits):
            return "expected detach_ensemble=True, got False"
        return None
    if len(students) > MAX_TRITON_STUDENTS:
        return f"expected at most {MAX_TRITON_STUDENTS} students, got {len(students)}"
    if len(students[0]) >= 1 << 24:
        return f"expected fewer than 2^24 rows, whose fp32 counts are exact, got {len(students[0])}"
    if terms := other_terms(options, ensemble_weights, teacher_logits):
        others = int(teacher_logits is not None)
        if options.mixing is not None and options.mixes == "logits":
            others = len(students)
        gathered = options.ensemble_learns or options.mixes == "probabilities"
        held, classes = len(students) + 1 + others + gathered, students[0].shape[1]
        covers = import_module("oekd_fast.kernels.ensemble_kd.plan").covers_objectives
        if held - 1 > MAX_TRITON_STUDENTS or not covers(held, classes, students[0].element_size()):
            return (
                f"expected a row of all students and teachers to fit the registers with {' and '.join(terms)}, "
                f"got {len(students)} students and C = {classes}"
            )
    return None


def other_terms(options: KDOptions, ensemble_weights: Tensor | None, teacher_logits: Tensor | None) -> list[str]:
    """The arguments of a call that make another objective than the paper's."""
    asked = {
        "a gate": ensemble_weights is not None and ensemble_weights.dim() == 2,
        "ensemble_ce_weight": options.ensemble_learns,
        "teacher_logits": teacher_logits is not None,
        "mixing": options.mixing is not None,
    }
    return [name for name, there in asked.items() if there]


def ensemble_attached(options: KDOptions, teacher_logits: Tensor | None) -> bool:
    """Whether gradients flow through the ensemble as a target: an external teacher is one of its own."""
    return not options.detach_ensemble and teacher_logits is None
