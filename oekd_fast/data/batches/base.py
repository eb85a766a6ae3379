"""Batches of a split on a device, epoch by epoch, in a form that a captured training step can replay."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable
from typing import Protocol

import torch
from torch import Tensor

from oekd_fast.data.dataset import Split

NO_IMAGE = -1
IGNORED_LABEL = -100
NO_BATCH_LEFT = "the epoch has no batch left: call begin first"


class Batches(Protocol):
    """Interface of a split in batches:

        batches.begin(batches.order(generator), batch_size)
        for _ in range(batches.num_batches(batch_size, drop_last=True)):
            batches.ready()  # work of the host, never captured
            images, labels = batches.take()  # work of the device only, at fixed addresses

    The order of an epoch is a tensor of the caller, so that a run can save it and resume inside an epoch.

    Attributes:
        image_shape: (C, H, W) of an image.
        device: device of the tensors that `take` returns.
    """

    image_shape: tuple[int, int, int]
    device: torch.device

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images in the split."""

    def order(self, generator: torch.Generator) -> Tensor:
        """Draw a permutation of the split (int64 [N]) on the CPU, so that it is the same for every device."""
        return torch.randperm(len(self), generator=generator)

    def num_batches(self, batch_size: int, *, drop_last: bool) -> int:
        """Return the number of batches in one pass; `drop_last` leaves out a last batch that is not full."""
        _check_batch_size(batch_size)
        return len(self) // batch_size if drop_last else -(-len(self) // batch_size)

    @abstractmethod
    def begin(self, order: Tensor, batch_size: int, first: int = 0) -> None:
        """Start an epoch, and end the current one if there is one. Called between steps, never captured.

        Args:
            order: rows of the split, int64 [M] on the CPU. Rows after the last full batch are left out. A row of -1
                means no image: its label is -100 and its pixels are undefined.
            batch_size: images per batch.
            first: number of the first batch, for resuming inside an epoch.

        Raises:
            TypeError, ValueError: an argument has another type, or is out of range.
        """

    @abstractmethod
    def ready(self) -> None:
        """Do the host's work for the next batch; called once before each step.

        Raises:
            RuntimeError: no epoch has begun, or it has no batch left.
        """

    @abstractmethod
    def take(self) -> tuple[Tensor, Tensor]:
        """Return the next images (uint8 [B, C, H, W]) and labels (int64 [B]), using work on the device only."""

    @abstractmethod
    def state(self) -> list[Tensor]:
        """Return the tensors that `take` changes, so that warm-up steps can be undone in place."""

    @property
    @abstractmethod
    def signature(self) -> Hashable:
        """Key of everything a captured `take` depends on; a captured step must not be replayed after it changes."""


class DeviceBatches(Batches):
    """Batches of a split whose images are all on the device: a batch is one gather, without a thread or a host copy.

    Args:
        split: split in memory; its images are copied to `device` here.
        device: device of the images and batches.
    """

    def __init__(self, split: Split, device: torch.device | str) -> None:
        self.images = split.images.to(device)
        self.device = self.images.device
        self.image_shape = tuple(split.images.shape[1:])
        self._labels = split.labels.cpu()
        # One row per batch: B rows of the split, B labels, and the number of the next batch.
        self._plan = torch.empty(0, 1, dtype=torch.int64, device=device)
        self._cursor = torch.zeros(1, dtype=torch.int64, device=device)
        self._batches_left = 0

    def __len__(self) -> int:
        return len(self._labels)

    def begin(self, order: Tensor, batch_size: int, first: int = 0) -> None:
        rows = epoch_rows(order, batch_size, first, len(self))
        # The last batch is followed by the first, so that a warm-up longer than the epoch stays in bounds.
        following = torch.arange(1, len(rows) + 1).remainder_(len(rows))
        plan = torch.cat([rows.clamp(min=0), epoch_labels(self._labels, rows), following[:, None]], dim=1)
        if plan.shape == self._plan.shape:
            self._plan.copy_(plan)
        else:
            self._plan = plan.to(self.device)
        self._cursor.fill_(first)
        self._batches_left = len(rows) - first

    def ready(self) -> None:
        if self._batches_left == 0:
            raise RuntimeError(NO_BATCH_LEFT)
        self._batches_left -= 1

    def take(self) -> tuple[Tensor, Tensor]:
        batch = self._plan.index_select(0, self._cursor)[0]
        size = len(batch) // 2
        self._cursor.copy_(batch[-1:])
        return self.images.index_select(0, batch[:size]), batch[size : 2 * size]

    def state(self) -> list[Tensor]:
        return [self._cursor]

    @property
    def signature(self) -> Hashable:
        return (*self._plan.shape, *(tensor.data_ptr() for tensor in (self.images, self._plan, self._cursor)))


def padded_order(count: int, batch_size: int, first: int = 0) -> Tensor:
    """Return `count` rows from `first` on, and -1 (no image) until the last batch is full, as int64 for `begin`."""
    _check_batch_size(batch_size)
    order = torch.full((-(-count // batch_size) * batch_size,), NO_IMAGE)
    order[:count] = torch.arange(first, first + count)
    return order


def epoch_rows(order: Tensor, batch_size: int, first: int, count: int) -> Tensor:
    """Check the arguments of `Batches.begin` for a split of `count` images; return int64 [batches, batch_size]."""
    _check_batch_size(batch_size)
    if not isinstance(order, Tensor):
        raise TypeError(f"order: expected a tensor, got {type(order).__name__}")
    if order.dtype != torch.int64:
        raise TypeError(f"order: expected dtype torch.int64, got {order.dtype}")
    if order.dim() != 1 or not order.is_cpu:
        raise ValueError(f"order: expected one dimension on the CPU, got {list(order.shape)} on {order.device}")
    batches = len(order) // batch_size
    if batches == 0:
        raise ValueError(f"order: expected at least one batch of {batch_size} rows, got {len(order)}")
    low, high = (int(bound) for bound in order.aminmax())
    if low < NO_IMAGE or high >= count:
        wrong = low if low < NO_IMAGE else high
        raise ValueError(f"order: expected rows in [0, {count}) or {NO_IMAGE} for no image, got {wrong}")
    if not 0 <= first < batches:
        raise ValueError(f"first: expected a batch in [0, {batches}), got {first}")
    return order[: batches * batch_size].view(batches, batch_size)


def epoch_labels(labels: Tensor, rows: Tensor) -> Tensor:
    """Return the labels of `rows` in the shape of `rows` (int64), -100 where there is no image."""
    return labels[rows.clamp(min=0)].masked_fill_(rows == NO_IMAGE, IGNORED_LABEL)


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size: expected an integer >= 1, got {batch_size}")
