"""A split that lives on the device, cut into batches there."""

from collections.abc import Iterator

import torch
from torch import Tensor

from oekd_fast.data.dataset import Split


class DeviceBatches:
    """Images and labels of one split on a device; a batch is one gather, without a worker or a host copy.

    The order of an epoch is plain data, so that the training loop can save it and resume inside an epoch:

        order = batches.order(generator)
        for i in range(batches.num_batches(size, drop_last=True)):
            images, labels = batches.batch(order[i * size : (i + 1) * size])
    """

    def __init__(self, split: Split, device: torch.device | str) -> None:
        self.images = split.images.to(device)
        self.labels = split.labels.to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def order(self, generator: torch.Generator) -> Tensor:
        """A permutation of the split (int64 [N]), drawn on the CPU, so the same for every device."""
        return torch.randperm(len(self), generator=generator)

    def num_batches(self, batch_size: int, *, drop_last: bool) -> int:
        """Batches in one pass; `drop_last` leaves out a last one that is not full."""
        _check_batch_size(batch_size)
        return len(self) // batch_size if drop_last else -(-len(self) // batch_size)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images (uint8 [B, C, H, W]) and labels (int64 [B]) at `indices` (int64 [B]), on the device.

        Indices on the CPU are copied to the device; move an epoch's order there once to save that copy.
        """
        indices = indices.to(self.labels.device, non_blocking=True)
        return self.images.index_select(0, indices), self.labels.index_select(0, indices)

    def sequential(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The split in its own order, for evaluation: views, the last one as long as what is left."""
        _check_batch_size(batch_size)
        return zip(self.images.split(batch_size), self.labels.split(batch_size), strict=True)


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
