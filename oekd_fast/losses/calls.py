"""The options of the ensemble distillation loss, and one call of it: both are checked when they are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oekd_fast.losses import checks, transforms

_NO_TENSORS = frozenset((float, int, type(None)))


@dataclass(frozen=True)
class KDOptions:
    """Options of the loss. :func:`oekd_fast.ensemble_kd_loss` describes each field.

    The defaults are those of the paper (section 4: alpha = 0.7, gamma = 0.15, T = 2). The temperature and the weights
    may be tensors with one element, and ``mixing`` is a tensor. The options hold these tensors without a copy, so each
    call of the loss reads their current values.

    Raises:
        TypeError: a field that must be a number is not one, or a tensor does not have a floating dtype.
        ValueError: the temperature is not finite or not > 0, a weight is not finite, label_smoothing is outside
            [0, 1], reduction or mixing_space is unknown, a tensor has the wrong shape, mixing is combined with
            detach_ensemble=False, or mixing_space is given without mixing.
    """

    temperature: float | Tensor = 2.0
    ce_weight: float | Tensor = 0.7
    kd_weight: float | Tensor = 0.15
    detach_ensemble: bool = True
    label_smoothing: float = 0.0
    ignore_index: int = -100
    reduction: str = "mean"
    ensemble_ce_weight: float | Tensor = 0.0
    mixing: Tensor | None = None
    mixing_space: str = "logits"

    def __post_init__(self) -> None:
        checks.check_options(self)

    @property
    def numbers(self) -> tuple[float | Tensor, float | Tensor, float | Tensor, float | Tensor]:
        """The temperature and the three weights, in the order of :data:`oekd_fast.losses.checks.DEVICE_SCALARS`."""
        return self.temperature, self.ce_weight, self.kd_weight, self.ensemble_ce_weight

    @property
    def ensemble_learns(self) -> bool:
        """Whether the ensemble's cross-entropy is part of the loss. A tensor counts as a weight other than 0."""
        return isinstance(self.ensemble_ce_weight, Tensor) or self.ensemble_ce_weight != 0


@dataclass(frozen=True)
class EnsembleKDCall:
    """One call of the loss with checked arguments; made by :meth:`of`.

    Attributes:
        students: S tensors [B, C].
        stacked: [S, B, C], the tensor whose slices are the students, if the logits came as one tensor.
        target: int64 [B].
        options: numbers, modes and the mixing matrix.
        ensemble_weights: [S], or a gate [B, S].
        teachers: logits [B, C] of the K external teachers; () without teachers.
    """

    students: Sequence[Tensor]
    stacked: Tensor | None
    target: Tensor | None
    options: KDOptions
    ensemble_weights: Tensor | None
    teachers: tuple[Tensor, ...]

    @classmethod
    def of(
        cls,
        logits: Sequence[Tensor] | Tensor,
        target: Tensor | None,
        options: KDOptions,
        *,
        ensemble_weights: Tensor | None = None,
        teacher_logits: Sequence[Tensor] | Tensor | None = None,
    ) -> EnsembleKDCall:
        """Check the tensors against each other and against the options, without a wait for a device.

        Raises:
            ValueError, TypeError: naming the argument, what was expected and what was given.
        """
        students = checks.check_logits(logits)
        first = students[0]
        checks.check_scalar_devices(options, first.device)
        checks.check_target(target, first.shape[0], first.device, options)  # len(first) would fix a dynamic size
        if ensemble_weights is not None:
            checks.check_ensemble_weights(ensemble_weights, students, options)
        teachers = () if teacher_logits is None else checks.check_teacher_logits(teacher_logits, first)
        if options.mixing is not None or teachers:
            checks.check_mixing_shape(options.mixing, students, teachers)
        stacked = logits if isinstance(logits, Tensor) else None
        return cls(students, stacked, target, options, ensemble_weights, teachers)

    @property
    def device(self) -> torch.device:
        return self.students[0].device

    @property
    def dtype(self) -> torch.dtype:
        return self.students[0].dtype

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The logits as they were given, for autograd: S tensors [B, C], or one [S, B, C]."""
        return tuple(self.students) if self.stacked is None else (self.stacked,)

    @property
    def ensemble_attached(self) -> bool:
        """Whether gradients flow through the ensemble as a target, which an external teacher replaces."""
        return not self.options.detach_ensemble and not self.teachers

    @property
    def weights_need_grad(self) -> bool:
        """Whether ``ensemble_weights`` require a gradient and the loss depends on them with gradients."""
        weights = self.ensemble_weights
        learns = self.options.ensemble_learns or self.ensemble_attached
        return learns and weights is not None and weights.requires_grad

    @property
    def learned_options(self) -> list[str]:
        """Names of the options whose tensors require a gradient, while gradients are enabled."""
        options = self.options
        values = (*options.numbers, options.mixing)
        if _NO_TENSORS.issuperset(map(type, values)) or not torch.is_grad_enabled():  # the usual case is fast
            return []
        named = zip((*checks.DEVICE_SCALARS, "mixing"), values, strict=True)
        return [name for name, value in named if isinstance(value, Tensor) and value.requires_grad]

    @property
    def has_tangent(self) -> bool:
        """Whether forward-mode AD differentiates an argument on which the loss depends with gradients."""
        if not transforms.in_forward_ad():
            return False
        options = self.options
        return transforms.has_tangent((*self.students, self.ensemble_weights, *options.numbers, options.mixing))

    @property
    def extensions(self) -> list[str]:
        """Names of the arguments that extend the paper's objective."""
        used = {
            "a gate": self.ensemble_weights is not None and self.ensemble_weights.dim() == 2,
            "ensemble_ce_weight": self.options.ensemble_learns,
            "teacher_logits": bool(self.teachers),
            "mixing": self.options.mixing is not None,
        }
        return [name for name, is_used in used.items() if is_used]

    def check_contents(self) -> None:
        """Check the numbers that are tensors, and the labels. Waits for their device.

        Raises:
            ValueError: a number is invalid, or a label is neither in [0, C) nor ``ignore_index``.
        """
        checks.check_scalar_values(self.options)
        if self.target is not None:
            checks.check_labels(self.target, self.students[0].shape[1], self.options.ignore_index)

    def op_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the ops in :mod:`oekd_fast.losses.schemas`, all but ``logits``.

        Numbers that are tensors are copied, so that a later backward pass uses the values which the loss has used.
        """
        options = self.options
        numbers = options.numbers
        device_scalars = None
        # A compiled graph with a number as an argument of an op would hold for that number alone.
        compiling = torch.compiler.is_compiling()
        if any(isinstance(number, Tensor) or (compiling and transforms.is_graph_input(number)) for number in numbers):
            # An ensemble_ce_weight of 0 leaves this term out.
            device_scalars = _stack_scalars(numbers if options.ensemble_learns else numbers[:3], self.device)
            numbers = (0.0, 0.0, 0.0, 0.0)  # the kernels read device_scalars instead
        temperature, ce_weight, kd_weight, ensemble_ce_weight = map(float, numbers)
        kwargs = {
            "target": self.target,
            "ensemble_weights": detached(self.ensemble_weights),
            "temperature": temperature,
            "ce_weight": ce_weight,
            "kd_weight": kd_weight,
            "label_smoothing": float(options.label_smoothing),
            "ignore_index": options.ignore_index,
            "mean": options.reduction == "mean",
            "detach_ensemble": not self.ensemble_attached,
        }
        # Each argument that equals the default of the schema would cost time to pass.
        if device_scalars is not None:
            kwargs["device_scalars"] = device_scalars
        elif options.ensemble_learns:
            kwargs["ensemble_ce_weight"] = ensemble_ce_weight
        if self.teachers:
            kwargs["teacher_logits"] = [teacher.detach() for teacher in self.teachers]
        if options.mixing is not None:
            kwargs["mixing"] = options.mixing.detach()
            kwargs["mix_probabilities"] = options.mixing_space == "probabilities"
        return kwargs


def detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def _stack_scalars(numbers: Sequence[float | Tensor], device: torch.device) -> Tensor:
    """Stack numbers and tensors of one element into a float32 vector on `device`, without a wait for the host."""
    return torch.stack(
        [
            number.detach().reshape(()).float()
            if isinstance(number, Tensor)
            # A product, since torch.compile would take a fill value as a constant.
            else torch.ones((), dtype=torch.float32, device=device) * float(number)
            for number in numbers
        ]
    )
