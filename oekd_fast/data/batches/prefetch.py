"""Batches of a split in host memory or on disk: a thread gathers the next ones while a step computes."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable
from queue import SimpleQueue

import torch
from torch import Tensor

from oekd_fast.data.batches.base import NO_BATCH_LEFT, NO_IMAGE, Batches, epoch_labels, epoch_rows
from oekd_fast.data.batches.transfer import Buffers, Slot, Transfer, make_transfer
from oekd_fast.data.dataset import AnySplit

# At any time two are being copied to the device, one is full, and one is being filled.
NUM_SLOTS = 4
SLOTS_IN_FLIGHT = 2


class HostBatches(Batches):
    """Batches of any split, gathered by a thread a few steps ahead and copied to fixed tensors on the device.

    `ready` raises an error of the thread with its traceback, and ends the epoch. The thread ends with its epoch, with
    `close`, when this object is deleted, and when the interpreter exits. It makes no CUDA call, so that it cannot
    disturb the capture of a CUDA graph.

    Args:
        split: split to serve.
        device: device of the batches.
    """

    def __init__(self, split: AnySplit, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.image_shape = split.image_shape
        self._split = split
        self._batch_size = 0
        self._batches_left = 0
        self._transfer: Transfer
        self._prefetch: _Prefetch
        self._in_flight: deque[Slot] = deque()
        self._end_prefetch: Callable[[], None] | None = None

    def __len__(self) -> int:
        return len(self._split)

    def begin(self, order: Tensor, batch_size: int, first: int = 0) -> None:
        rows = epoch_rows(order, batch_size, first, len(self))
        self.close()
        if batch_size != self._batch_size:
            self._transfer = make_transfer(batch_size, self.image_shape, self.device, NUM_SLOTS)
            self._batch_size = batch_size
        for slot in self._transfer.slots:
            slot.wait()
        # Cloned, since the caller may change its order while the thread reads it.
        self._prefetch = _Prefetch(self._split, rows[first:].clone(), self._transfer.slots)
        self._end_prefetch = weakref.finalize(self, self._prefetch.end)
        self._batches_left = len(rows) - first

    def ready(self) -> None:
        if self._batches_left == 0:
            raise RuntimeError(NO_BATCH_LEFT)
        filled = self._prefetch.full.get()
        if isinstance(filled, BaseException):
            self.close()
            raise filled
        self._transfer.send(filled)
        self._in_flight.append(filled)
        if len(self._in_flight) > SLOTS_IN_FLIGHT:
            done = self._in_flight.popleft()
            done.wait()
            self._prefetch.free.put(done)
        self._batches_left -= 1
        if self._batches_left == 0:
            self.close()

    def take(self) -> tuple[Tensor, Tensor]:
        return self._transfer.target.images, self._transfer.target.labels

    def state(self) -> list[Tensor]:
        return []

    @property
    def signature(self) -> Hashable:
        return self._batch_size, *(tensor.data_ptr() for tensor in self.take())

    def close(self) -> None:
        """Drop the batches gathered ahead and end the thread; `begin` starts a new epoch."""
        self._batches_left = 0
        self._in_flight.clear()
        if self._end_prefetch is not None:
            self._end_prefetch()
            self._end_prefetch = None


class _Prefetch:
    """Thread of one epoch, which fills slots from `free` and puts them, or its error, into `full`.

    It holds no reference to its `HostBatches`, which can therefore be garbage-collected while the thread runs.
    """

    def __init__(self, split: AnySplit, rows: Tensor, slots: list[Slot]) -> None:
        self.free: SimpleQueue[Slot | None] = SimpleQueue()
        self.full: SimpleQueue[Slot | BaseException] = SimpleQueue()
        for slot in slots:
            self.free.put(slot)
        self._ended = False
        # A daemon thread, since the interpreter joins other threads before it runs the finalizer that ends this one.
        self._thread = threading.Thread(target=self._run, args=(split, rows), name="oekd_fast prefetch", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """End the thread after its current batch, and wait for it."""
        self._ended = True
        self.free.put(None)  # wakes the thread
        if threading.current_thread() is not self._thread:  # the garbage collector may run this finalizer there
            self._thread.join()

    def _run(self, split: AnySplit, rows: Tensor) -> None:
        try:
            for batch in rows:
                slot = self.free.get()
                if self._ended:
                    return
                _fill(slot.buffers, split, batch)
                self.full.put(slot)
        except BaseException as error:
            self.full.put(error)


def _fill(buffers: Buffers, split: AnySplit, rows: Tensor) -> None:
    buffers.labels.copy_(epoch_labels(split.labels, rows))
    kept = rows != NO_IMAGE
    if kept.all():
        split.gather(rows, buffers.images)
    else:
        buffers.images[kept] = split.gather(rows[kept])
