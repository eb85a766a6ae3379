"""CUDA graphs of calls on one device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

import torch

from oekd_fast.distributed.world import LostRankError

POLL = 0.0005  # seconds


class CudaRecorder:
    """The `Recorder` of one CUDA device. Warm-ups and captures share a stream, all captures a memory pool.

    Args:
        deadline: seconds after which waiting for a mark raises LostRankError; None waits without end. NCCL's own
            timeouts do not cover a captured exchange, which never ends if another rank has died.
    """

    def __init__(self, device: torch.device, deadline: float | None = None) -> None:
        self._device, self._deadline = device, deadline
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._needed = 0

    def warm_up(self, call: Callable[[], None], times: int) -> None:
        device = self._device
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        try:
            with torch.cuda.stream(self._stream):
                for _ in range(times - 1):
                    call()
                with _waiting_is_an_error():
                    call()
        finally:
            torch.cuda.current_stream(device).wait_stream(self._stream)
            torch.cuda.synchronize(device)
            self._needed = torch.cuda.max_memory_allocated(device) - before

    def record(self, call: Callable[[], None], generators: Sequence[torch.Generator]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        before = torch.cuda.current_stream(self._device)
        fault: BaseException | None = None
        try:
            # "thread_local": other threads of the process may do work that a capture forbids.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                try:
                    call()
                except BaseException as error:
                    fault = error
                    raise
        except BaseException as error:
            fault = fault or error  # the error of the call says more than the one that ending the capture raises
            self._abandon(before, generators)
        if fault is not None:
            raise fault
        return graph.replay

    def _abandon(self, before: torch.cuda.Stream, generators: Sequence[torch.Generator]) -> None:
        """Leave a capture that failed.

        Torch keeps the capture's stream as the current one, and before 2.12 also keeps its allocator and the generators
        in the capture (pytorch/pytorch#180395). `torch._C._cuda_endAllocateToPool` is private; torch 2.13 has it.
        """
        torch.cuda.set_stream(before)
        with suppress(AttributeError, RuntimeError):  # a torch without it, or one that has already left the pool
            torch._C._cuda_endAllocateToPool(before.device_index, self._pool)
        # A capture that succeeds releases the generators.
        with suppress(RuntimeError):
            empty, something = torch.cuda.CUDAGraph(), torch.zeros((), device=self._device)
            for generator in generators:
                empty.register_generator_state(generator)
            with torch.cuda.graph(empty, stream=self._stream, capture_error_mode="thread_local"):
                something.zero_()

    def needed_bytes(self) -> int:
        return self._needed

    def free_bytes(self) -> int:
        return torch.cuda.mem_get_info(self._device)[0]

    def mark(self) -> Callable[[], None]:
        event = torch.cuda.Event(blocking=True)
        event.record(torch.cuda.current_stream(self._device))
        return event.synchronize if self._deadline is None else partial(_wait_until, event, self._deadline)


def _wait_until(event: torch.cuda.Event, deadline: float) -> None:
    end = time.monotonic() + deadline
    while not event.query():
        if time.monotonic() > end:
            raise LostRankError(f"a step did not end within {deadline:g} s; another rank may have ended")
        time.sleep(POLL)


@contextmanager
def _waiting_is_an_error() -> Iterator[None]:
    """Raise where the host would wait for the device. Used before a capture, where an error leaves nothing undone."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
