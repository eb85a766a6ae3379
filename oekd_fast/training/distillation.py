"""The loss on a family's logits with what a step's objective adds to it: a gate, a teacher, copies of the students."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oekd_fast.config.objectives import others
from oekd_fast.losses.ensemble_kd import ensemble_kd_loss, ensemble_kd_value_and_grad
from oekd_fast.losses.reference import EnsembleKDOutput


@dataclass(frozen=True)
class Sources:
    """What the students learn from in one step, beside labels and each other.

    teacher_logits: [B, C] of an external teacher.
    hints: its maps, one [B, C_b, H_b, W_b] a block, for the intermediate loss of all students.
    copies: logits [B, C] of a copy of each student: the students learn from these instead of each other.
    """

    teacher_logits: Tensor | None = None
    hints: tuple[Tensor, ...] | None = None
    copies: tuple[Tensor, ...] = ()


def family_loss(
    logits: Sequence[Tensor], labels: Tensor, options: Mapping[str, Any], sources: Sources, gate: Tensor | None
) -> EnsembleKDOutput:
    """Statistics whose loss is differentiable; `options` are keyword arguments of `ensemble_kd_loss`.

    Args:
        gate: weights of the ensemble, [B, S].
    """
    return ensemble_kd_loss(logits, labels, ensemble_weights=gate, teacher_logits=sources.teacher_logits, **options)


def family_value_and_grad(
    logits: Sequence[Tensor],
    labels: Tensor,
    options: Mapping[str, Any],
    sources: Sources,
    gate: Tensor | None,
    grad_scale: Tensor | None,
) -> tuple[EnsembleKDOutput, tuple[Tensor, ...], Tensor | None]:
    """Statistics, the gradient of each student's logits, and that of the gate; arguments as `family_loss`."""
    if sources.copies:
        return *_from_copies(logits, sources.copies, labels, options, grad_scale), None
    weights_grad = None if gate is None else torch.empty_like(gate)
    statistics, grads = ensemble_kd_value_and_grad(
        logits,
        labels,
        ensemble_weights=None if gate is None else gate.detach(),
        teacher_logits=sources.teacher_logits,
        grad_scale=grad_scale,
        weights_grad=weights_grad,
        **options,
    )
    return statistics, grads, weights_grad


def _from_copies(
    logits: Sequence[Tensor],
    copies: Sequence[Tensor],
    labels: Tensor,
    options: Mapping[str, Any],
    grad_scale: Tensor | None,
) -> tuple[EnsembleKDOutput, tuple[Tensor, ...]]:
    """The copies stand as further students, who are mixed into the targets, and whose own losses count nothing."""
    count, device = len(logits), labels.device
    mixing = torch.zeros(2 * count, 2 * count, device=device)
    mixing[:count, count:] = others(count, device)
    weights = torch.zeros(2 * count, device=device)
    weights[:count] = 1 / count
    statistics, grads = ensemble_kd_value_and_grad(
        [*logits, *copies],
        labels,
        ensemble_weights=weights,
        grad_scale=grad_scale,
        **{**options, "mixing": mixing},
    )
    ce, kd = statistics.ce[:count], statistics.kd[:count]
    loss = options["ce_weight"] * ce.sum() + options["kd_weight"] * kd.sum()
    correct = torch.cat((statistics.correct[:count], statistics.correct[-1:]))
    return statistics._replace(loss=loss, ce=ce, kd=kd, correct=correct), grads[:count]
