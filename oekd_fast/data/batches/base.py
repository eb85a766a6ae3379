"""One split of the data in batches on a device, epoch by epoch, in a form that a captured step can replay."""

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
    """A split in batches. The order of an epoch is plain data, so that a run can save it and resume inside an epoch:

        batches.begin(batches.order(generator), batch_size)
        for _ in range(batches.num_batches(batch_size, drop_last=True)):
            batches.ready()  # the host's part, never captured
            images, labels = batches.take()  # the device's part: kernels alone, at fixed addresses

    `image_shape` is (C, H, W); `device` is where `take` gives its tensors.
    """

    image_shape: tuple[int, int, int]
    device: torch.device

    @abstractmethod
    def __len__(self) -> int:
        """Images in the split."""

    def order(self, generator: torch.Generator) -> Tensor:
        """A permutation of the split (int64 [N]), drawn on the CPU, so the same for every device."""
        return torch.randperm(len(self), generator=generator)

    def num_batches(self, batch_size: int, *, drop_last: bool) -> int:
        """Batches in one pass; `drop_last` leaves out a last one that is not full."""
        _check_batch_size(batch_size)
        return len(self) // batch_size if drop_last else -(-len(self) // batch_size)

    @abstractmethod
    def begin(self, order: Tensor, batch_size: int, first: int = 0) -> None:
        """Start an epoch, or leave the one at hand for another. Called between steps, never captured.

        Args:
            order: int64 on the CPU, rows of the split; what fills no batch is left out. -1 is no image: its label
                becomes -100 and its pixels are any.
            batch_size: images a batch.
            first: the batch to begin with.

        Raises:
            TypeError, ValueError: an argument has another type, or is out of range.
        """

    @abstractmethod
    def ready(self) -> None:
        """The host's part of the next batch, once before each step.

        Raises:
            RuntimeError: no epoch has begun, or it has no batch left.
        """

    @abstractmethod
    def take(self) -> tuple[Tensor, Tensor]:
        """The next batch: images (uint8 [B, C, H, W]) and labels (int64 [B]), by work on the device alone."""

    @abstractmethod
    def state(self) -> list[Tensor]:
        """The tensors that `take` changes, so that steps of a warm-up can be undone in place."""

    @property
    @abstractmethod
    def signature(self) -> Hashable:
        """What a captured `take` depends on; once it changes, the captured one must not be replayed."""


class DeviceBatches(Batches):
    """A split whose images all lie on the device: a batch is one gather, without a worker or a host copy."""

    def __init__(self, split: Split, device: torch.device | str) -> None:
        self.images = split.images.to(device)
        self.device = self.images.device
        self.image_shape = tuple(split.images.shape[1:])
        self._labels = split.labels.cpu()
        # A row a batch: its B rows of the split, its B labels, the number of the next batch.
        self._plan = torch.empty(0, 1, dtype=torch.int64, device=device)
        self._cursor = torch.zeros(1, dtype=torch.int64, device=device)
        self._batches_left = 0

    def __len__(self) -> int:
        return len(self._labels)

    def begin(self, order: Tensor, batch_size: int, first: int = 0) -> None:
        rows = epoch_rows(order, batch_size, first, len(self))
        # The last batch is followed by the first, so that a warm-up longer than the epoch stays inside.
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


def padded_order(count: int, batch_size: int) -> Tensor:
    """0 to count - 1, then -1 (no image) until the last batch is full: int64, a pass for `begin` without a rest."""
    _check_batch_size(batch_size)
    order = torch.full((-(-count // batch_size) * batch_size,), NO_IMAGE)
    order[:count] = torch.arange(count)
    return order


def epoch_rows(order: Tensor, batch_size: int, first: int, count: int) -> Tensor:
    """What `Batches.begin` was given, checked for a split of `count` images, as int64 [batches, batch_size]."""
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
        came = low if low < NO_IMAGE else high
        raise ValueError(f"order: expected rows in [0, {count}) or {NO_IMAGE} for no image, got {came}")
    if not 0 <= first < batches:
        raise ValueError(f"first: expected a batch in [0, {batches}), got {first}")
    return order[: batches * batch_size].view(batches, batch_size)


def epoch_labels(labels: Tensor, rows: Tensor) -> Tensor:
    """The labels (int64) of `rows` in its shape, -100 where there is no image."""
    return labels[rows.clamp(min=0)].masked_fill_(rows == NO_IMAGE, IGNORED_LABEL)


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
