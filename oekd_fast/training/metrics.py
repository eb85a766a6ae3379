"""Sums that stay on the device during an epoch; the host reads them once, at its end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oekd_fast.common import devices
from oekd_fast.distributed.world import ALONE, World
from oekd_fast.losses.reference import EnsembleKDOutput


@dataclass(frozen=True)
class EpochMetrics:
    """Means over the images of an epoch; lists hold one value a student, in the order of the family.

    images: number of images.
    loss: weighted sum of all terms.
    ce, kd: cross-entropy and distillation loss.
    feature: intermediate loss, summed over students and blocks.
    ensemble_ce: cross-entropy of the ensemble.
    accuracy, ensemble_accuracy: in percent.
    first_bad_step: the first step whose loss was not finite, counted from 1; None if there was none.
    """

    images: int
    loss: float
    ce: list[float]
    kd: list[float]
    feature: float
    ensemble_ce: float
    accuracy: list[float]
    ensemble_accuracy: float
    first_bad_step: int | None

    @property
    def labels_out_of_range(self) -> bool:
        """Whether a label was out of range: on a GPU its row makes every cross-entropy NaN, and no other loss."""
        others = (*self.kd, self.feature)
        return all(math.isnan(ce) for ce in (*self.ce, self.ensemble_ce)) and all(map(math.isfinite, others))

    def as_dict(self) -> dict[str, Any]:
        """Return the fields that metrics.jsonl records."""
        return {name: value for name, value in vars(self).items() if name not in ("images", "first_bad_step")}


# Batches whose values are kept on a device without float64 until they are added on the CPU.
BATCHES_KEPT = 256


class RunningMetrics:
    """Sums over batches in one float64 vector.

    Its elements are: images, steps, first bad step, loss, feature, ensemble CE, S x CE, S x KD, S + 1 x correct. Losses
    are summed over images. Each rank of `world` has the sums of its own images; `read` and `state_dict` are collective
    and add them up. With `counts_images` False, the images of this rank are those of another rank too, which counts
    them, and `update` gets the terms that this rank adds.

    On a device without float64 the vector is on the CPU. The values of a batch, which float32 holds exactly, stay on
    the device and are added on the CPU every `BATCHES_KEPT` batches, so that the sums are the same on all devices.
    """

    _SCALARS = 6

    def __init__(
        self, num_students: int, device: torch.device, world: World = ALONE, *, counts_images: bool = True
    ) -> None:
        self._students, self._world, self._counts_images = num_students, world, counts_images
        self._kept: list[Tensor] | None = None if devices.has_float64(device) else []
        where = device if self._kept is None else torch.device("cpu")
        self.sums = torch.zeros(self._SCALARS + 3 * num_students + 1, dtype=torch.float64, device=where)
        # The losses of a batch in the order of their sums, and views of them: loss, feature, ensemble CE, CE, KD.
        self._batch = torch.zeros(3 + 2 * num_students, dtype=torch.float64, device=where)
        self._batch_slots = [*self._batch[:3].unbind(), *self._batch[3:].split(num_students)]

    def reset(self) -> None:
        """Set all sums to zero."""
        self.sums.zero_()
        if self._kept is not None:
            self._kept.clear()

    @torch.no_grad()
    def update(self, output: EnsembleKDOutput, rows: int | Tensor, feature: Tensor | None, loss: Tensor) -> None:
        """Add a batch without waiting for the device, except for every `BATCHES_KEPT`-th batch without float64.

        Args:
            output: means over the batch.
            rows: number of images in the batch, below 2^24; an int or a scalar on the device.
            feature: scalar intermediate loss, or None.
            loss: scalar, weighted sum of all terms.
        """
        if self._kept is None:
            losses = [loss, *([] if feature is None else [feature]), output.ensemble_ce, output.ce, output.kd]
            self._add(losses, output.correct, rows)
            return
        zero = output.loss.new_zeros(())
        count = rows.to(output.loss.dtype) if isinstance(rows, Tensor) else output.loss.new_full((), rows)
        scalars = torch.stack((count, loss, zero if feature is None else feature, output.ensemble_ce))
        self._kept.append(torch.cat((scalars, output.ce, output.kd, output.correct)))
        if len(self._kept) == BATCHES_KEPT:
            self._add_kept()

    def tensors(self) -> dict[str, Tensor]:
        return {"sums": self.sums}

    def state_dict(self) -> Tensor:
        """Return the sums over all ranks."""
        return self._of_all_ranks().to(self.sums.device)

    def load_state_dict(self, state: Tensor) -> None:
        """Continue from what `state_dict` returned; rank 0 takes the sums over images."""
        self.reset()
        self.sums.copy_(state)
        if not self._world.is_main:
            self.sums[0] = 0
            self.sums[3:] = 0

    def read(self) -> EpochMetrics:
        """Copy the sums to the host, which waits for the device, and return the means."""
        images, _, bad, *rest = self._of_all_ranks().tolist()
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

    def loss_so_far(self) -> float | None:
        """Return the mean loss of the batches so far if it is known without waiting for a device or for other ranks."""
        if self.sums.device.type != "cpu" or self._world.size > 1:
            return None
        images, loss = self.sums[0].item(), self.sums[3].item()
        return loss / images if images else None

    def _of_all_ranks(self) -> Tensor:
        """Return the sums over all ranks, on the CPU; the number of steps is the same on each of them."""
        self._add_kept()
        of_ranks = torch.stack(self._world.gather(self.sums))
        total = of_ranks.sum(dim=0)
        total[1] = of_ranks[0, 1]
        bad = of_ranks[:, 2]
        total[2] = bad[bad > 0].min() if bad.any() else 0.0
        return total

    def _add_kept(self) -> None:
        """Add the batches that were kept on a device without float64, which waits for it."""
        if self._kept:
            lengths = [1, 1, 1, 1, self._students, self._students, self._students + 1]
            for batch in torch.stack(self._kept).cpu():
                (rows,), loss, feature, ensemble_ce, ce, kd, correct = batch.split(lengths)
                self._add([loss[0], feature[0], ensemble_ce[0], ce, kd], correct, rows)
            self._kept.clear()

    def _add(self, losses: list[Tensor], correct: Tensor, rows: int | Tensor) -> None:
        """Add a batch, in few operations, which each are a launch on a GPU.

        Args:
            losses: loss, feature unless it is left out, ensemble CE, CE [S] and KD [S], floating.
            correct: [S + 1].
            rows: number of images in the batch, an int or a scalar.
        """
        sums, end = self.sums, self._SCALARS + 2 * self._students
        images, steps, bad = sums[:3].unbind()
        slots = self._batch_slots
        if len(losses) < len(slots):
            slots[1].zero_()
            slots = [slots[0], *slots[2:]]
        torch._foreach_copy_(slots, losses)
        # A float32 times a number of images is exact in float64.
        if isinstance(rows, Tensor):
            steps.add_(1)
            if self._counts_images:
                images.add_(rows)
            sums[3:end].addcmul_(self._batch, rows.double())
        else:
            torch._foreach_add_([images, steps], [float(rows * self._counts_images), 1.0])
            sums[3:end].add_(self._batch, alpha=rows)
        sums[end:].add_(correct)
        is_bad = (self._batch[0] - self._batch[0]).ne(0)  # NaN for infinities and NaN
        torch.where(is_bad & bad.eq(0), steps, bad, out=bad)
