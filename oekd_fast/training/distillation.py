"""The loss on a family's logits with the signals of one step: a gate, an external teacher, copies of the students."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oekd_fast.config.distillation import DistillationConfig
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.losses.calls import KDOptions
from oekd_fast.losses.ensemble_kd import ensemble_kd_loss, ensemble_kd_value_and_grad
from oekd_fast.losses.reference import EnsembleKDOutput


@dataclass(frozen=True)
class TeacherSignals:
    """Teacher signals for one batch, beside the labels and the other students.

    teacher_logits: [B, C], of an external teacher; None without one.
    hints: maps of the external teacher, one [B, C_b, H_b, W_b] a block; the intermediate loss compares all students
        with them. None compares the students with the pseudo teacher.
    copies: logits [B, C] of a delayed or averaged copy of each student, which the students learn from instead of each
        other.
    """

    teacher_logits: Tensor | None = None
    hints: tuple[Tensor, ...] | None = None
    copies: tuple[Tensor, ...] = ()


def family_options(config: TrainConfig, class_weights: Tensor | None = None) -> KDOptions:
    """Return the options of the objective's loss on the logits of the whole family.

    Args:
        class_weights: weights of the classes in the cross-entropy, floating [C]; None weights them equally.
    """
    weights, mixing = config.loss_weights, {}
    if config.mixes_students:
        mixing = {"mixing": mixing_rows(config), "mixing_space": "probabilities"}
    return KDOptions(
        weights.temperature,
        weights.ce_weight,
        weights.kd_weight,
        config.detach_ensemble,
        label_smoothing=config.label_smoothing,
        ensemble_ce_weight=weights.ensemble_ce_weight,
        weight=class_weights,
        divergence=config.divergence,
        beta=config.divergence_beta,
        standardise_logits=config.standardise_logits,
        **mixing,
    )


def label_options(config: DistillationConfig, class_weights: Tensor | None = None) -> KDOptions:
    """Return the options of the loss of a network that learns from labels alone: cross-entropy with `class_weights`."""
    return KDOptions(ce_weight=1.0, kd_weight=0.0, label_smoothing=config.label_smoothing, weight=class_weights)


def mixing_rows(config: TrainConfig) -> Tensor:
    """Return the mixing matrix [S, S] of `config`, for the mixture of probabilities.

    Row j weights the students that student j learns from equally. The sum of a row is the strength of the target: 1
    unless `config.kd_strengths` is set, or 0 for a student that has no target.
    """
    students = config.num_students
    if config.learn_from == "equal_or_wider":
        taught_by = torch.ones(students, students).tril()
    elif config.learn_from == "all":
        taught_by = torch.ones(students, students)
    elif config.learn_from == "neighbours":
        taught_by = torch.ones(students, students).tril(1).triu(-1) - torch.eye(students)
    elif config.learn_from == "wider":
        taught_by = torch.ones(students, students).tril(-1)
        taught_by[0, 1:] = 1.0
    elif config.learns_from_first:
        taught_by = torch.zeros(students, students)
        taught_by[1:, 0] = 1.0
    else:
        taught_by = 1.0 - torch.eye(students)
    strengths = torch.ones(students) if config.kd_strengths is None else torch.tensor(config.kd_strengths)
    return taught_by * (strengths / taught_by.sum(dim=1).clamp(min=1.0))[:, None]


def family_loss(
    logits: Sequence[Tensor], target: Tensor, options: Mapping[str, Any], signals: TeacherSignals, gate: Tensor | None
) -> EnsembleKDOutput:
    """Return the statistics of a batch, whose loss is differentiable.

    Args:
        logits: S tensors [B, C].
        target: class indices, int64 [B], or probabilities, float32 [B, C].
        options: keyword arguments of `ensemble_kd_loss`.
        signals: teacher signals for the batch.
        gate: weights of the students in the ensemble, [B, S]; None weights them equally.
    """
    return ensemble_kd_loss(logits, target, ensemble_weights=gate, **_loss_arguments(target, options, signals))


def family_value_and_grad(
    logits: Sequence[Tensor],
    target: Tensor,
    options: Mapping[str, Any],
    signals: TeacherSignals,
    gate: Tensor | None,
    grad_scale: Tensor | None,
) -> tuple[EnsembleKDOutput, tuple[Tensor, ...], Tensor | None]:
    """Return the statistics, the gradient of each student's logits, and the gradient of the gate.

    Args:
        logits, target, options, signals, gate: same as for `family_loss`.
        grad_scale: one-element tensor that multiplies the gradients; None means 1.
    """
    weights_grad = None if gate is None else torch.empty_like(gate)
    statistics, grads = ensemble_kd_value_and_grad(
        logits,
        target,
        ensemble_weights=None if gate is None else gate.detach(),
        grad_scale=grad_scale,
        weights_grad=weights_grad,
        **_loss_arguments(target, options, signals),
    )
    return statistics, grads, weights_grad


def _loss_arguments(target: Tensor, options: Mapping[str, Any], signals: TeacherSignals) -> dict[str, Any]:
    """Return the options together with the teachers of this batch.

    With class weights the loss is divided by the number of images, not by the sum of their weights, so that the losses
    of all parts of a batch add up to that of the batch.
    """
    if options["weight"] is not None:
        options = {**options, "num_items": len(target)}
    if not signals.copies:
        return {**options, "teacher_logits": signals.teacher_logits}
    # The copies take the place of the students in the mixing matrix, whose columns for the students become 0.
    mixing = options["mixing"]
    mixing = torch.cat((torch.zeros_like(mixing), mixing), dim=1)
    return {**options, "teacher_logits": signals.copies, "mixing": mixing}
