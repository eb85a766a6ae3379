"""Horizontal flips that alternate from epoch to epoch instead of being drawn anew."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from oekd_fast.data.batches.base import epoch_rows


class AlternatingFlips:
    """Flips each image in every other epoch, a random half of the images in the first one.

    Two epochs in a row therefore show each image and its mirror image once (Jordan 2024, arXiv 2404.00498, "alternating
    flip"). The flips of an epoch follow from the seed and the number of the epoch, so that a checkpoint stores none.

    Args:
        seed: seed of the flips of the first epoch.
        device: device of the flips.
    """

    def __init__(self, seed: int, device: torch.device | str) -> None:
        self._seed = seed
        # One row a batch. `take` reads the row at the cursor.
        self._plan = torch.empty(0, 1, dtype=torch.bool, device=device)
        self._cursor = torch.zeros(1, dtype=torch.int64, device=device)

    def begin(self, order: Tensor, batch_size: int, first: int, epoch: int, count: int) -> None:
        """Start the epoch number `epoch`, counted from 0, at the batch number `first`.

        Args:
            order: rows of the split, int64 [M] on the CPU; see `Batches.begin`.
            count: number of images in the split.
        """
        rows = epoch_rows(order, batch_size, first, count)
        generator = torch.Generator().manual_seed(self._seed)
        in_even_epochs = torch.randint(2, (count,), generator=generator, dtype=torch.bool)
        plan = in_even_epochs[rows]
        if epoch % 2 == 1:
            plan.logical_not_()
        if plan.shape == self._plan.shape:
            self._plan.copy_(plan)
        else:
            self._plan = plan.to(self._cursor.device)
        self._cursor.fill_(first)

    def take(self) -> Tensor:
        """Return whether to flip each image of the next batch, bool [B], by work on the device alone."""
        flips = self._plan.index_select(0, self._cursor)[0]
        # The last batch is followed by the first, so that a warm-up longer than the epoch stays in bounds.
        self._cursor.add_(1).remainder_(len(self._plan))
        return flips

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that `take` changes."""
        return {"cursor": self._cursor}

    @property
    def signature(self) -> Hashable:
        """Key of what a captured `take` depends on; see `Batches.signature`."""
        return (*self._plan.shape, self._plan.data_ptr())
