"""Zeroed counters for kernels that must know which of their programs finishes last.

Zeroing them in each call would be a second launch. Instead a kernel leaves its counters as it found them, 0, and the
next launch on the same stream, which runs after it, takes the same ones. A captured graph may be replayed on any
stream at any time, so every launch in it gets counters of its own, for good.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

_SLAB = 1 << 20  # int32 counters a device: 4 MB
_LINE = 32  # launches that run side by side stay out of each other's cache lines


class _Slab:
    """One allocation a device, handed out from its start and never taken back."""

    def __init__(self, device: torch.device) -> None:
        self._zeros = _allocate_apart(device)
        self._used = 0
        self._by_stream: dict[int, Tensor] = {}

    def take(self, count: int) -> Tensor | None:
        count = -(-count // _LINE) * _LINE
        if self._used + count > _SLAB:
            return None
        self._used += count
        return self._zeros[self._used - count : self._used]

    def of_stream(self, stream: int, count: int) -> Tensor | None:
        held = self._by_stream.get(stream)
        if held is None or held.numel() < count:
            # Twice as many as asked for: growing batches use up the slab only logarithmically often.
            held = self.take(count if held is None else 2 * count)
            if held is not None:
                self._by_stream[stream] = held
        return held


_slabs: dict[int, _Slab] = {}
_lock = threading.Lock()


def zeroed(count: int, device: torch.device) -> Tensor:
    """At least ``count`` int32 zeros for a launch on the current stream that leaves zeros behind.

    Where none are left, or a graph is captured before anything ran, they cost a fill of their own.
    """
    if device.type != "cuda":
        return torch.zeros(count, dtype=torch.int32, device=device)
    capturing = torch.cuda.is_current_stream_capturing()
    with _lock:
        slab = _slabs.get(device.index)
        if slab is None and not capturing:
            slab = _slabs[device.index] = _Slab(device)
        counters = None
        if slab is not None:
            stream = torch.cuda.current_stream(device).cuda_stream
            counters = slab.take(count) if capturing else slab.of_stream(stream, count)
    return torch.zeros(count, dtype=torch.int32, device=device) if counters is None else counters


def _allocate_apart(device: torch.device) -> Tensor:
    """The slab, allocated in a thread of its own: this thread may be routed to the memory pool of a CUDA graph."""
    made = []

    def allocate() -> None:
        with torch.cuda.device(device), torch.inference_mode(False):
            made.append(torch.zeros(_SLAB, dtype=torch.int32, device=device))
            torch.cuda.current_stream().synchronize()  # once a process, before the first launch

    thread = threading.Thread(target=allocate)
    thread.start()
    thread.join()
    if not made:
        raise RuntimeError(f"counters: could not allocate {4 * _SLAB} bytes on {device}")
    return made[0]
