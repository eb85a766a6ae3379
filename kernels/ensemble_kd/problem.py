"""The arguments of an op, and what a launch of a kernel reads of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
from torch import Tensor

from .divergences import FORWARD
from .plan import MOST_ROWS_COUNTED, VECTOR_BYTES, power_of_2
from .targets import ENSEMBLE, LOGITS, PROBABILITIES, TEACHER


@dataclass(frozen=True)
class Problem:
    """The arguments of an op, the same for all three kernels. Shapes and dtypes are those of the op's schema."""

    logits: Sequence[Tensor]
    target: Tensor | None
    ensemble_weights: Tensor | None
    temperature: float
    ce_weight: float
    kd_weight: float
    label_smoothing: float
    ignore_index: int
    mean: bool
    detach_ensemble: bool
    device_scalars: Tensor | None = None  # fp32 [3], read in place of the first three numbers, or [4]
    # Only the resident kernel supports the next four, a gate [R, S], probabilities as target, and the last three; see
    # plan.covers_objectives.
    ensemble_ce_weight: float = 0.0
    teacher_logits: Sequence[Tensor] | None = None
    mixing: Tensor | None = None
    mix_probabilities: bool = False
    class_weights: Tensor | None = None
    num_items: Tensor | None = None
    per_row: bool = False
    divergence: int = FORWARD.value
    beta: float = 0.5
    standardise_logits: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """S, the number of rows, and C."""
        outer, classes, *inner = self.logits[0].shape
        return len(self.logits), outer * (inner[0] if inner else 1), classes

    @property
    def device(self) -> torch.device:
        return self.logits[0].device

    @property
    def power(self) -> int:
        """The temperature if it is 1, 2, 3 or 4; 0 for any other, one in device memory, and standardised logits."""
        if self.device_scalars is not None or self.standardise_logits:
            return 0
        return int(self.temperature) if self.temperature in (1.0, 2.0, 3.0, 4.0) else 0

    @property
    def ensemble_learns(self) -> bool:
        """Whether the ensemble's cross-entropy is part of the loss."""
        return self.ensemble_ce_weight != 0 or (self.device_scalars is not None and len(self.device_scalars) == 4)

    @property
    def probabilities(self) -> tuple[Tensor, ...]:
        """The target if it holds probabilities."""
        return (self.target,) if self.target is not None and self.target.is_floating_point() else ()

    @property
    def labels(self) -> Tensor | None:
        """The target [rows] if it holds class indices."""
        return None if self.target is None or self.probabilities else self.target.reshape(-1)

    @property
    def divisors(self) -> int:
        """1, or 2 if the mean of the cross-entropies divides by the weights of the labels."""
        return 2 if self.class_weights is not None and self.labels is not None else 1

    @property
    def teachers(self) -> tuple[Tensor, ...]:
        """The external teachers."""
        return tuple(self.teacher_logits or ())

    @property
    def targets(self) -> int:
        """TARGETS of the resident kernel."""
        if self.mixing is None:
            return (TEACHER if self.teachers else ENSEMBLE).value
        return (PROBABILITIES if self.mix_probabilities else LOGITS).value

    @property
    def needs_resident(self) -> bool:
        """Whether only the resident kernel supports the problem."""
        gate = self.ensemble_weights is not None and self.ensemble_weights.dim() == 2
        other_targets = self.targets != ENSEMBLE.value or self.divergence != FORWARD.value or self.standardise_logits
        return gate or self.ensemble_learns or other_targets or bool(self.probabilities)

    @property
    def members(self) -> int:
        """Number of members of a row: the students, the ensemble and the extra teachers."""
        students = len(self.logits)
        return students + 1 + (students if self.targets == LOGITS.value else len(self.teachers))

    @property
    def held(self) -> int:
        """Values of one class that a thread holds at a time.

        Those of the members; the labels; a sum of gradients; with another divergence a difference of logits; and with
        standardised logits these.
        """
        gathered = self.ensemble_learns or self.targets == PROBABILITIES.value
        more = gathered + (self.divergence != FORWARD.value) + self.standardise_logits
        return self.members + len(self.probabilities) + more

    def objective_arguments(self, layout: Layout, weights_grad: Tensor | None) -> dict[str, Any]:
        """Arguments of the resident kernel beside those that all kernels share."""
        # The dispatcher evaluates lazy negations in all arguments but an optional list of tensors.
        weights, teachers = self.ensemble_weights, tuple(teacher.resolve_neg() for teacher in self.teachers)
        return {
            "weights_stride": 0 if weights is None else weights.stride(-1),
            "weights_row": weights.stride(0) if weights is not None and weights.dim() == 2 else None,
            "teachers": teachers,
            "teachers_row": tuple(layout.vectors(teacher, layout.vec_beside) for teacher in teachers),
            "teachers_class": tuple(teacher.stride(1) for teacher in teachers),
            "mixing": None if self.mixing is None else self.mixing.float().contiguous(),
            "ensemble_ce_weight": self.ensemble_ce_weight if self.ensemble_learns else None,
            "weights_grad": weights_grad,
            "probabilities": self.probabilities,
            "probabilities_row": tuple(layout.vectors(target, layout.vec_beside) for target in self.probabilities),
            "probabilities_class": tuple(target.stride(1) for target in self.probabilities),
            "beta": self.beta,
            "TARGETS": self.targets,
            "DIVERGENCE": self.divergence,
            "STANDARDISE": self.standardise_logits,
            "VEC_BESIDE": layout.vec_beside,
            "UNIT_BESIDE": layout.unit_beside,
            "WEIGHTED": self.target is not None and (self.class_weights is not None or bool(self.probabilities)),
        }

    def layout(self, grads: Sequence[Tensor]) -> Layout:
        """The layout of the logits, their gradients and the tensors beside them."""
        return Layout.of((*self.logits, *grads), (*self.teachers, *self.probabilities))

    def kernel_arguments(self, layout: Layout, grads: Sequence[Tensor], grad_scale: Tensor | None) -> dict[str, Any]:
        """Arguments that all kernels share, under their names in the kernels."""
        students, rows, classes = self.shape
        labels = self.labels
        of_rows = self.per_row and grad_scale is not None and grad_scale.numel() == rows != 1
        grad_scale = grad_scale.reshape(-1) if of_rows else grad_scale
        return {
            "logits": tuple(self.logits),
            "logits_row": layout.shared(layout.vectors(z, layout.vec) for z in self.logits),
            "logits_class": layout.shared(z.stride(1) for z in self.logits),
            "grads": tuple(grads),
            "grads_row": layout.shared(layout.vectors(grad, layout.vec) for grad in grads),
            "grads_class": layout.shared(grad.stride(1) for grad in grads),
            "target": labels,
            "target_stride": 0 if labels is None else labels.stride(0),
            "class_weights": self._class_weights(),
            "weights": self.ensemble_weights,
            "weights_stride": 0 if self.ensemble_weights is None else self.ensemble_weights.stride(0),
            "grad_scale": grad_scale,
            "grad_scale_row": grad_scale.stride(0) if of_rows else None,
            "device_scalars": self.device_scalars,
            "num_items": self.num_items,
            "delays": None,
            "rows": rows,
            "temperature": self.temperature,
            "ce_weight": self.ce_weight,
            "kd_weight": self.kd_weight,
            "label_smoothing": self.label_smoothing,
            "ignore_index": self.ignore_index,
            "CLASSES": classes,
            "VEC": layout.vec,
            "UNIT": layout.unit,
            "WIDTH": power_of_2(self.members),
            "POWER": self.power,
            "SMOOTH": self.label_smoothing > 0.0,
            "MEAN": self.mean,
            "DETACH": self.detach_ensemble,
            "DIVISORS": self.divisors,
        }

    def _class_weights(self) -> tuple[Tensor, ...]:
        """The class weights, with label smoothing their mean too; () without."""
        if self.class_weights is None or self.target is None:
            return ()
        weights = self.class_weights.contiguous()
        return (weights, weights.float().mean()) if self.label_smoothing > 0.0 else (weights,)

    def divisors_of_many(self) -> tuple[Tensor, ...]:
        """The divisors of a mean over many rows, which launches of PyTorch compute; () if the kernel counts them."""
        labels = self.labels
        if not self.mean or labels is None or self.num_items is not None or len(labels) <= MOST_ROWS_COUNTED:
            return ()
        counted = labels != self.ignore_index
        if self.class_weights is None:
            return (counted.sum(),)
        classes = len(self.class_weights)
        valid = counted & (labels >= 0) & (labels < classes)
        of_labels = self.class_weights.float()[labels.clamp(0, classes - 1).long()]
        return counted.sum(), torch.where(valid, of_labels, 0.0).sum()

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """An uninitialised tensor on the device of the logits."""
        return torch.empty(shape, dtype=dtype, device=self.device)


@dataclass(frozen=True)
class Layout:
    """How the tensors [B, C] or [O, C, I] of a problem lie in memory.

    Attributes:
        split: rows have two strides, those of o and i, in some tensor.
        unit: the axis with stride 1 in the logits and their gradients: 1 (classes), 0 (rows), or -1 for neither.
        vec: elements, at most 16 bytes, that divide all strides of their rows.
        unit_beside, vec_beside: the same for the teachers and probabilities.
    """

    split: bool
    unit: int
    vec: int
    unit_beside: int
    vec_beside: int

    @classmethod
    def of(cls, every: Sequence[Tensor], beside: Sequence[Tensor]) -> Layout:
        split = any(one_stride(tensor) is None for tensor in (*every, *beside))
        return cls(split, *_unit_and_vec(every, split), *_unit_and_vec(beside, split))

    def vectors(self, tensor: Tensor, vec: int) -> tuple[int, ...]:
        """Strides of the rows of a tensor as the kernels read them, in multiples of `vec` elements."""
        strides = _strides(tensor, self.split)
        return *(stride // vec for stride in strides[:2]), *strides[2:]

    def shared(self, strides: Iterable[Any]) -> tuple[Any, ...]:
        """The strides of all students; only one if they are equal and the places of classes depend on them.

        Registers would not hold the places of every class of every student.
        """
        strides = tuple(strides)
        return strides[:1] if self.unit != 1 and len(set(strides)) == 1 else strides


def one_stride(tensor: Tensor) -> int | None:
    """The stride from each row of [B, C] or [O, C, I] to the next; None if there are two."""
    if tensor.dim() == 2:
        return tensor.stride(0)
    outer, _, inner = tensor.shape
    if inner == 1:
        return tensor.stride(0)
    return tensor.stride(2) if outer == 1 or tensor.stride(0) == inner * tensor.stride(2) else None


def _unit_and_vec(tensors: Sequence[Tensor], split: bool) -> tuple[int, int]:
    """``unit`` and ``vec`` of :class:`Layout` for some tensors."""
    strides = [_strides(tensor, split)[:2] for tensor in tensors]
    if all(tensor.stride(1) == 1 for tensor in tensors):
        if any(stride >= 2**31 for of_tensor in strides for stride in of_tensor):
            return 1, 1  # the kernels multiply by `vec` in 32 bits, but take longer strides as they are in 64
        widest = max((tensor.element_size() for tensor in tensors), default=VECTOR_BYTES)
        return 1, gcd(VECTOR_BYTES // widest, *(stride for of_tensor in strides for stride in of_tensor))
    return 0 if all(of_tensor[-1] == 1 for of_tensor in strides) else -1, 1


def _strides(tensor: Tensor, split: bool) -> tuple[int, ...]:
    if split:
        return tensor.stride(0), tensor.stride(2), tensor.shape[2]
    return (one_stride(tensor),)
