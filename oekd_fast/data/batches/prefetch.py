"""A split that stays in host memory or on the disk: a thread gathers the next batches while the step computes."""

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

# Two are being copied from, one is full, one is filled.
NUM_SLOTS = 4
SLOTS_IN_FLIGHT = 2


class HostBatches(Batches):
    """Batches of any split, gathered in a thread some steps ahead and copied to where the step reads them.

    What goes wrong in the thread is raised by `ready`, with its traceback, and ends the epoch. The thread ends with its
    epoch, and with `close`, this object or the interpreter. It makes no CUDA call, so it disturbs no capture.
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
        # A copy, since the caller may reuse its order while the thread reads it.
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
        """Drop what was gathered ahead and end the thread; `begin` starts anew."""
        self._batches_left = 0
        self._in_flight.clear()
        if self._end_prefetch is not None:
            self._end_prefetch()
            self._end_prefetch = None


class _Prefetch:
    """The thread of one epoch; it takes slots from `free` and puts them, or what went wrong, in `full`.

    It knows nothing of the `HostBatches`, which can so be collected while it runs.
    """

    def __init__(self, split: AnySplit, rows: Tensor, slots: list[Slot]) -> None:
        self.free: SimpleQueue[Slot | None] = SimpleQueue()
        self.full: SimpleQueue[Slot | BaseException] = SimpleQueue()
        for slot in slots:
            self.free.put(slot)
        self._ended = False
        # A daemon: the interpreter waits for other threads before it runs the finalizer that ends this one.
        self._thread = threading.Thread(target=self._run, args=(split, rows), name="oekd_fast prefetch", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Wait until the thread has ended, which it does after the batch at hand."""
        self._ended = True
        self.free.put(None)  # wakes it
        if threading.current_thread() is not self._thread:  # where the collector may run a finalizer
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
