"""Losses of a batch whose parts were computed one after the other."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from oekd_fast.losses.reference import EnsembleKDOutput
from oekd_fast.training.backward import FamilyLosses


def mean_losses(losses: Sequence[FamilyLosses], counts: Sequence[int]) -> FamilyLosses:
    """Return the losses of a batch from those of its micro-batches.

    Args:
        losses: losses of each micro-batch, which are means over its rows.
        counts: number of rows of each micro-batch.

    Returns:
        Means over all rows; the numbers of correct predictions are added up.
    """
    if len(losses) == 1:
        return losses[0]
    shares = [count / sum(counts) for count in counts]

    def mean(values: Sequence[Tensor]) -> Tensor:
        return sum(share * value for share, value in zip(shares, values, strict=True))

    of_parts = [part.statistics for part in losses]
    statistics = EnsembleKDOutput(
        loss=mean([part.loss for part in of_parts]),
        ce=mean([part.ce for part in of_parts]),
        kd=mean([part.kd for part in of_parts]),
        ensemble_ce=mean([part.ensemble_ce for part in of_parts]),
        correct=sum(part.correct for part in of_parts),
    )
    features = [part.feature for part in losses if part.feature is not None]
    return FamilyLosses(statistics, mean(features) if features else None, mean([part.total for part in losses]))
