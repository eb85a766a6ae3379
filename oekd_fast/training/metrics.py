"""Sums that stay on the device while an epoch runs, and are read by the host once at its end."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from oekd_fast.losses.reference import EnsembleKDOutput


@dataclass(frozen=True)
class EpochMetrics:
    """Means over the images of an epoch; accuracies in percent, students in the family's order."""

    images: int
    loss: float
    ce: list[float]
    kd: list[float]
    feature: float
    ensemble_ce: float
    accuracy: list[float]
    ensemble_accuracy: float
    first_bad_step: int | None  # counted from 1 within what was summed; None: every loss was finite

    @property
    def labels_out_of_range(self) -> bool:
        """Whether a label was no class: on a GPU its row makes every cross-entropy NaN, and nothing else."""
        others = (*self.kd, self.feature)
        return all(math.isnan(ce) for ce in (*self.ce, self.ensemble_ce)) and all(map(math.isfinite, others))

    def as_dict(self) -> dict:
        return {name: value for name, value in vars(self).items() if name not in ("images", "first_bad_step")}


class RunningMetrics:
    """One fp64 vector: images, steps, first bad step, loss, feature, ensemble CE, S x CE, S x KD, S + 1 correct."""

    _SCALARS = 6

    def __init__(self, num_students: int, device: torch.device) -> None:
        self._students = num_students
        self.sums = torch.zeros(self._SCALARS + 3 * num_students + 1, dtype=torch.float64, device=device)

    def reset(self) -> None:
        self.sums.zero_()

    @torch.no_grad()
    def update(self, output: EnsembleKDOutput, rows: int, feature: Tensor | None, loss: Tensor) -> None:
        """Add a batch whose means are in `output`; no host synchronisation.

        Args:
            rows: images of the batch.
            feature: scalar intermediate loss, or None.
            loss: scalar, all terms weighted.
        """
        sums, s = self.sums, self._SCALARS
        sums[1] += 1
        sums[2] = torch.where((sums[2] == 0) & ~torch.isfinite(loss), sums[1], sums[2])
        zero = output.loss.new_zeros(())
        means = torch.cat(
            (
                torch.stack((loss, zero if feature is None else feature, output.ensemble_ce)),
                output.ce,
                output.kd,
            )
        )
        sums[0] += rows
        sums[3 : s + 2 * self._students] += rows * means.double()
        sums[s + 2 * self._students :] += output.correct

    def read(self) -> EpochMetrics:
        """Copy the sums to the host and divide."""
        images, _, bad, *rest = self.sums.tolist()
        n, per_image = self._students, 1.0 / max(images, 1.0)
        loss, feature, ensemble_ce, *rest = (value * per_image for value in rest)
        correct = [100.0 * share for share in rest[2 * n :]]
        return EpochMetrics(
            images=int(images),
            loss=loss,
            ce=rest[:n],
            kd=rest[n : 2 * n],
            feature=feature,
            ensemble_ce=ensemble_ce,
            accuracy=correct[:n],
            ensemble_accuracy=correct[n],
            first_bad_step=int(bad) or None,
        )
