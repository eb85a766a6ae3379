"""Zeroed counters for kernels that detect which of their programs finishes last.

Zeroing the counters in each call would be a second launch. Instead a kernel resets its counters to 0, and the next
launch on the same stream, which runs after it, uses the same ones. A captured graph may be replayed on any stream at
any time, so every launch in a graph gets counters of its own, which are never reused.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

_SLAB = 1 << 20  # int32 counters for each device: 4 MB
_LINE = 32  # counters in a cache line of 128 bytes; concurrent launches do not share one


class _Slab:
    """The counters of one device: one allocation, given out from its start and never freed."""

    def __init__(self, device: torch.device) -> None:
        self._zeros = _allocate_apart(device)
        self._used = 0
        self._by_stream: dict[int, Tensor] = {}

    def take(self, count: int) -> Tensor | None:
        """At least `count` counters that nobody has used; None if too few are left."""
        count = -(-count // _LINE) * _LINE
        if self._used + count > _SLAB:
            return None
        self._used += count
        return self._zeros[self._used - count : self._used]

    def of_stream(self, stream: int, count: int) -> Tensor | None:
        """At least `count` counters for launches on `stream`; None if too few are left."""
        held = self._by_stream.get(stream)
        if held is None or held.numel() < count:
            # Twice the count, so that slowly growing batches do not use up the slab.
            held = self.take(count if held is None else 2 * count)
            if held is not None:
                self._by_stream[stream] = held
        return held


_slabs: dict[int, _Slab] = {}
_lock = threading.Lock()


def zeroed(count: int, device: torch.device) -> Tensor:
    """At least ``count`` int32 zeros for a launch on the current stream, which must reset them to 0.

    If too few are left, or a graph is captured before the first launch, a new tensor is filled with zeros.
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
    """Allocate the counters in another thread, since this one may use the memory pool of a CUDA graph."""
    made = []

    def allocate() -> None:
        with torch.cuda.device(device), torch.inference_mode(False):
            made.append(torch.zeros(_SLAB, dtype=torch.int32, device=device))
            torch.cuda.current_stream().synchronize()  # once for each device, before its first launch

    thread = threading.Thread(target=allocate)
    thread.start()
    thread.join()
    if not made:
        raise RuntimeError(f"counters: could not allocate {4 * _SLAB} bytes on {device}")
    return made[0]
