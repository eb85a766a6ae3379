"""The options of the ensemble distillation loss, and one call of it: both are checked when they are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from oekd_fast.losses import checks, target_checks, transforms
from oekd_fast.losses.model_outputs import logits_of
from oekd_fast.losses.row_layout import RowLayout, row_layout

_NO_TENSORS = frozenset((float, int, type(None)))


@dataclass(frozen=True)
class KDOptions:
    """Options of the loss. :func:`oekd_fast.ensemble_kd_loss` describes each field.

    The defaults are those of the paper (section 4: alpha = 0.7, gamma = 0.15, T = 2). The temperature and the weights
    may be tensors with one element, and ``mixing`` and ``weight`` are tensors. The options hold these tensors without a
    copy, so each call of the loss reads their current values.

    Raises:
        TypeError: a field that must be a number or a bool is not one, or a tensor does not have a floating dtype.
        ValueError: the temperature is not finite or not > 0, a weight is not finite, label_smoothing is outside
            [0, 1], beta is outside its range, reduction, divergence or mixing_space is unknown, a tensor has the wrong
            shape, mixing is combined with detach_ensemble=False, or mixing_space is given without mixing.
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
    class_dim: int = 1
    weight: Tensor | None = None
    divergence: str = "forward"
    beta: float = 0.5
    standardise_logits: bool = False

    def __post_init__(self) -> None:
        checks.check_options(self)
        if self.weight is not None:
            target_checks.check_weight(self.weight)

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
        students: S tensors [R, C], or [O, C, I] with the rows r = o I + i; views of the logits where strides allow.
        stacked: [S, R, C] or [S, O, C, I], the tensor whose slices are the students, if the logits came as one tensor.
        target: class indices [R] or [O, I], or probabilities with the shape of a student.
        options: numbers, modes, class weights and the mixing matrix.
        ensemble_weights: [S], or a gate [R, S].
        teachers: logits of the K external teachers, with the shape of a student; () without teachers.
        num_items: number or tensor of one element that replaces the divisors of means.
        layout: how the rows lie in the logits that were given; None if those have the shape [B, C].
    """

    students: Sequence[Tensor]
    stacked: Tensor | None
    target: Tensor | None
    options: KDOptions
    ensemble_weights: Tensor | None
    teachers: tuple[Tensor, ...]
    num_items: float | Tensor | None = None
    layout: RowLayout | None = None

    @classmethod
    def of(
        cls,
        logits: Any,
        target: Tensor | None,
        options: KDOptions,
        *,
        ensemble_weights: Tensor | None = None,
        teacher_logits: Sequence[Tensor] | Tensor | None = None,
        num_items: float | Tensor | None = None,
    ) -> EnsembleKDCall:
        """Check the tensors against each other and against the options, without a wait for a device.

        Raises:
            ValueError, TypeError: naming the argument, what was expected and what was given.
        """
        logits = logits_of(logits)
        students = checks.check_logits(logits)
        first = students[0]
        shape, device = first.shape, first.device
        class_dim = checks.check_class_dim(options.class_dim, shape)
        checks.check_scalar_devices(options, device)
        target_checks.check_target(target, shape, class_dim, device, options)
        if options.weight is not None:
            target_checks.check_weight_length(options.weight, shape[class_dim], device)
        if num_items is not None:
            target_checks.check_num_items(num_items, options, device)
        if ensemble_weights is not None:
            checks.check_ensemble_weights(ensemble_weights, students, class_dim, options)
        teachers = () if teacher_logits is None else checks.check_teacher_logits(teacher_logits, first)
        if options.mixing is not None or teachers:
            checks.check_mixing_shape(options.mixing, students, teachers)
        stacked = logits if isinstance(logits, Tensor) else None
        call = cls(students, stacked, target, options, ensemble_weights, tuple(teachers), num_items)
        return call if len(shape) == 2 and class_dim == 1 else call._flat(class_dim)

    def _flat(self, class_dim: int) -> EnsembleKDCall:
        """Return this call with all tensors as views [R, C] or [O, C, I], where their strides allow it."""
        target, gate = self.target, self.ensemble_weights
        dense = [target] if self.has_probabilities else []
        layout = row_layout(self.students[0].shape, class_dim, [*self.students, *self.teachers, *dense])
        if layout is None:
            return self
        if self.stacked is None:
            stacked, students = None, [layout.flatten(z) for z in self.students]
        else:
            stacked = layout.flatten(self.stacked, leading=1)
            students = list(stacked.unbind(0))
        if target is not None:
            target = layout.flatten(target) if dense else layout.flatten_rows(target)
        if gate is not None and gate.dim() > 1:
            gate = gate.reshape(-1, len(students))
        teachers = tuple(layout.flatten(teacher) for teacher in self.teachers)
        return replace(
            self,
            students=students,
            stacked=stacked,
            target=target,
            ensemble_weights=gate,
            teachers=teachers,
            layout=layout,
        )

    @property
    def has_probabilities(self) -> bool:
        """Whether the target holds probabilities in place of class indices."""
        return self.target is not None and self.target.is_floating_point()

    @property
    def rows_shape(self) -> tuple[int, ...]:
        """The shape of one value a row, as the caller sees it."""
        return tuple(self.students[0].shape[:1]) if self.layout is None else self.layout.rows_shape

    @property
    def device(self) -> torch.device:
        return self.students[0].device

    @property
    def dtype(self) -> torch.dtype:
        return self.students[0].dtype

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The logits for autograd: the S students, or the one tensor whose slices they are."""
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
        """Names of the options and probabilities that require a gradient, while gradients are enabled."""
        options = self.options
        values = (*options.numbers, options.mixing, self.target if self.has_probabilities else None)
        if _NO_TENSORS.issuperset(map(type, values)) or not torch.is_grad_enabled():  # the usual case is fast
            return []
        named = zip((*checks.DEVICE_SCALARS, "mixing", "target"), values, strict=True)
        return [name for name, value in named if isinstance(value, Tensor) and value.requires_grad]

    @property
    def has_tangent(self) -> bool:
        """Whether forward-mode AD differentiates an argument on which the loss depends with gradients."""
        if not transforms.in_forward_ad():
            return False
        options = self.options
        probabilities = self.target if self.has_probabilities else None
        tensors = (*self.students, self.ensemble_weights, *options.numbers, options.mixing, probabilities)
        return transforms.has_tangent(tensors)

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
        """Check the numbers that are tensors, the class weights and the labels. Waits for their device.

        Raises:
            ValueError: a number or class weight is invalid, a label is neither in [0, C) nor ``ignore_index``, or a row
                of probabilities is no distribution.
        """
        checks.check_scalar_values(self.options)
        if isinstance(self.num_items, Tensor):
            target_checks.check_num_items_value(self.num_items.item())
        if self.options.weight is not None:
            target_checks.check_weight_values(self.options.weight)
        if self.has_probabilities:
            target_checks.check_probabilities(self.target)
        elif self.target is not None:
            target_checks.check_labels(self.target, self.students[0].shape[1], self.options.ignore_index)

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
            "target": detached(self.target),
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
        if options.weight is not None:
            kwargs["class_weights"] = options.weight.detach()
        if self.num_items is not None:
            kwargs["num_items"] = _one_number(self.num_items, self.device)
        if options.reduction == "none":
            kwargs["per_row"] = True
        if options.divergence != "forward":
            kwargs["divergence"] = checks.DIVERGENCES.index(options.divergence)
            kwargs["beta"] = float(options.beta)
        if options.standardise_logits:
            kwargs["standardise_logits"] = True
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


def _one_number(number: float | Tensor, device: torch.device) -> Tensor:
    """Return a number as a tensor of one element on `device`, without a wait for the host."""
    if isinstance(number, Tensor):
        return number.detach().reshape(())
    # A product, since torch.compile would take a fill value as a constant. float32 is exact below 2^24.
    dtype = torch.float64 if device.type == "cpu" else torch.float32
    return torch.ones((), dtype=dtype, device=device) * float(number)
