"""The backends of the ensemble distillation loss, and the choice of one for a call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib.util import find_spec

import torch

from oekd_fast import native
from oekd_fast.kernels.ensemble_kd.plan import covers_objectives
from oekd_fast.losses import native_ops, transforms
from oekd_fast.losses.calls import EnsembleKDCall
from oekd_fast.losses.schemas import triton_kernels

COMPILED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_TRITON_STUDENTS = 62  # one bit each of an integer, and one for the ensemble; beyond 16, registers spill


class Backend(ABC):
    """One implementation of the loss.

    Attributes:
        name: value of the argument ``backend``.
        checks_contents: whether the kernel itself checks, on the CPU, all that :meth:`EnsembleKDCall.check_contents`
            does.
    """

    name: str
    checks_contents = False

    @abstractmethod
    def unavailable(self) -> str | None:
        """Why no call can run in this installation; None if calls can run."""

    @abstractmethod
    def unsupported(self, call: EnsembleKDCall) -> str | None:
        """Why the backend does not support `call`, as "expected X, got Y"; None if it does."""


class ReferenceBackend(Backend):
    """Plain PyTorch, on any device."""

    name = "reference"

    def unavailable(self) -> str | None:
        return None

    def unsupported(self, call: EnsembleKDCall) -> str | None:
        return None


def _needs_reference(call: EnsembleKDCall) -> str | None:
    """Return why only plain PyTorch can differentiate `call`, as "expected X, got Y"; None if the kernels can."""
    if transforms.in_torch_func():
        return "expected a call outside the transforms of torch.func, got one inside"
    if call.has_tangent:
        return "expected tensors without tangents, got a dual tensor of forward-mode AD"
    if transforms.is_distributed(call.students[0]):
        return "expected tensors of one process, got a DTensor"
    if names := call.learned_options:
        return f"{names[0]}: requires_grad is only supported by backend='reference'"
    return None


def _lost_in_export(call: EnsembleKDCall) -> str | None:
    """Return that torch.export would lose a gradient, which a Function in Python computes; None if none is needed."""
    needed = call.weights_need_grad or any(z.requires_grad for z in call.students)
    if needed and torch.is_grad_enabled() and transforms.is_exporting():
        return "expected tensors that require no gradient in torch.export, got requires_grad=True"
    return None


class NativeBackend(Backend):
    """The C++ kernel for the CPU (csrc/cpu/ensemble_kd)."""

    name = "native"
    checks_contents = True

    def unavailable(self) -> str | None:
        return native.why_missing()

    def unsupported(self, call: EnsembleKDCall) -> str | None:
        if call.device.type != "cpu":
            return f"expected logits on the CPU, got {call.device}"
        if call.dtype not in COMPILED_DTYPES:
            return f"expected float32, bfloat16 or float16 logits, got {call.dtype}"
        if call.ensemble_attached:
            return "expected detach_ensemble=True, got False"
        if reason := _needs_reference(call):
            return reason
        # The autograd kernel of the op, which comes with the executor, keeps the gradients of the logits.
        return _lost_in_export(call) if call.weights_need_grad or native.why_no_executor() else None

    def ops(self, call: EnsembleKDCall):
        """The ops whose errors are ValueError; in a graph of torch.compile, the ops alone."""
        return torch.ops.oekd_fast if torch.compiler.is_compiling() else native_ops


class TritonBackend(Backend):
    """The Triton kernels for CUDA (kernels/ensemble_kd); tests run them on the CPU, in Triton's interpreter."""

    name = "triton"

    def __init__(self) -> None:
        # Triton is found here but only loaded at its first launch, since loading takes a second.
        self._is_installed = find_spec("triton") is not None

    def unavailable(self) -> str | None:
        return None if self._is_installed else "No module named 'triton'; install triton >= 3.6 (Linux)"

    def unsupported(self, call: EnsembleKDCall) -> str | None:
        device, students = call.device, len(call.students)
        # torch.compile can neither trace the interpreter nor import it.
        interpreted = device.type == "cpu" and not torch.compiler.is_compiling() and triton_kernels().INTERPRETED
        if device.type != "cuda" and not interpreted:
            return (
                "expected logits on CUDA (or on the CPU with TRITON_INTERPRET=1 set before the first use, for tests: "
                f"slow), got {device}"
            )
        if call.dtype not in COMPILED_DTYPES:
            return f"expected float32, bfloat16 or float16 logits, got {call.dtype}"
        if students > MAX_TRITON_STUDENTS:
            return f"expected at most {MAX_TRITON_STUDENTS} students, got {students}"
        if (rows := _number_of_rows(call)) >= 1 << 24:
            return f"expected fewer than 2^24 rows, since they are counted in float32, got {rows}"
        if call.options.divergence == "decoupled":
            return "expected divergence 'forward', 'reverse' or 'js', got 'decoupled'"
        if reason := _needs_reference(call) or _lost_in_export(call):
            return reason
        return self._unsupported_objective(call, names) if (names := self.resident_only(call)) else None

    def resident_only(self, call: EnsembleKDCall) -> list[str]:
        """Names of the arguments that only the kernel supports which holds whole rows in registers."""
        names = call.extensions
        if call.has_probabilities:
            names.append("probabilities as target")
        if call.options.divergence != "forward":
            names.append("divergence")
        if call.options.standardise_logits:
            names.append("standardise_logits")
        return names

    def keeps_rows(self, call: EnsembleKDCall) -> bool:
        """Whether backward computes the gradients from a few numbers a row, which the forward pass keeps.

        For images of labels, with few classes and many rows, these numbers would take more memory than the logits, and
        one launch computes value and gradients as fast.
        """
        if self.resident_only(call):
            return False
        return call.students[0].dim() == 2 or not _fits_registers(call, len(call.students) + 1)

    def _unsupported_objective(self, call: EnsembleKDCall, names: list[str]) -> str | None:
        """Check a call that only the resident kernel supports."""
        options, students, classes = call.options, len(call.students), call.students[0].shape[1]
        if options.divergence != "forward":
            if call.ensemble_attached:
                return f"expected detach_ensemble=True beside divergence={options.divergence!r}, got False"
            if options.mixing_space == "probabilities":
                return f"expected mixing_space='logits' beside divergence={options.divergence!r}, got 'probabilities'"
        if options.standardise_logits and call.ensemble_attached:
            return "expected detach_ensemble=True beside standardise_logits=True, got False"
        # The extra teachers of a row: the external ones, or the mixture of each student.
        mixes_logits = options.mixing is not None and options.mixing_space == "logits"
        extra = students if mixes_logits else len(call.teachers)
        gathered = options.ensemble_learns or options.mixing_space == "probabilities"
        held = students + 1 + extra + gathered + call.has_probabilities + (options.divergence != "forward")
        held += options.standardise_logits
        if held - 1 > MAX_TRITON_STUDENTS or not _fits_registers(call, held):
            return (
                "expected a row of all students and teachers to fit the registers with "
                f"{' and '.join(names)}, got {students} students, {len(call.teachers)} teachers and C = {classes}"
            )
        return None

    def ops(self, call: EnsembleKDCall):
        """The dispatcher on CUDA; on the CPU, where the ops are native, the interpreted kernels."""
        return triton_kernels() if call.device.type == "cpu" else torch.ops.oekd_fast


def _number_of_rows(call: EnsembleKDCall) -> int:
    shape = call.students[0].shape
    return shape[0] if len(shape) == 2 else shape[0] * shape[2]


def _fits_registers(call: EnsembleKDCall, held: int) -> bool:
    """Whether the registers of a program hold `held` values of every class."""
    # The kernels are compiled for a number of classes, so a dynamic one is fixed.
    return covers_objectives(held, int(call.students[0].shape[1]), call.students[0].element_size())


REFERENCE, NATIVE, TRITON = ReferenceBackend(), NativeBackend(), TritonBackend()
BACKENDS = {backend.name: backend for backend in (REFERENCE, NATIVE, TRITON)}
NAMES = ("auto", *BACKENDS)


def choose_backend(name: str, call: EnsembleKDCall) -> Backend:
    """Return the backend called `name`; for "auto" the compiled backend of the device, else the reference.

    Raises:
        ValueError: the name is unknown, or the named backend does not support the call.
        RuntimeError: the named backend is unavailable.
    """
    if name not in NAMES:
        raise ValueError(f"backend: expected one of {NAMES}, got {name!r}")
    if name == "auto":
        compiled = NATIVE if call.device.type == "cpu" else TRITON if call.device.type == "cuda" else REFERENCE
        # Under torch.compile a formatted reason can be compared with None, but has no truth value.
        usable = compiled.unavailable() is None and compiled.unsupported(call) is None
        return compiled if usable else REFERENCE
    backend = BACKENDS[name]
    if reason := backend.unavailable():
        raise RuntimeError(f"backend {name!r} is unavailable: {reason}; {_alternatives(name, call)}")
    if reason := backend.unsupported(call):
        raise ValueError(f"backend {name!r}: {reason}; {_alternatives(name, call)}")
    return backend


def _alternatives(name: str, call: EnsembleKDCall) -> str:
    """Return the answers of the other backends to `call`, in one line."""
    answers = []
    for other in BACKENDS.values():
        if other.name != name:
            reason = other.unavailable() or other.unsupported(call)
            answers.append(f"backend={other.name!r}: {reason or 'supports this call'}")
    return "; ".join(answers)
