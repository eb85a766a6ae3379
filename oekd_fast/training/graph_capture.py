"""A call captured once as a CUDA graph and replayed; what the warm-up changes is put back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol

import torch
from torch import Tensor

from oekd_fast.parallel.executor import StudentError

WARM_UP = 3  # the last of them chooses no algorithm and makes no state any more
STEPS_AHEAD = 3  # replays that the host may be ahead of the device

State = dict[str, Tensor]


class CaptureError(RuntimeError):
    """A call cannot be captured; the message is one line that says why."""


class Recorder(Protocol):
    """What capturing needs of a device; `CudaRecorder`, and a stand-in where there is no GPU to test on."""

    def warm_up(self, call: Callable[[], None], times: int) -> None:
        """Run `call` as it will be captured, on the same stream, and wait for it.

        Raises:
            RuntimeError: `call` waits for the device, which no capture allows.
        """
        ...

    def record(self, call: Callable[[], None], generators: Sequence[torch.Generator]) -> Callable[[], None]:
        """Capture `call` without running it; what is returned launches it."""
        ...

    def needed_bytes(self) -> int:
        """The most that the last warm-up had allocated beside what was there before it."""
        ...

    def free_bytes(self) -> int: ...

    def mark(self) -> Callable[[], None]:
        """A point in the device's work; what is returned waits until the device gets there."""
        ...


class CudaRecorder:
    """On one CUDA device. Warm-ups and captures share a stream, captures a memory pool."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
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
            # Only this thread is held to what a capture allows: others of the process have work of their own.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                try:
                    call()
                except BaseException as error:
                    fault = error
                    raise
        except BaseException as error:
            fault = fault or error  # of the two, what the end of the capture made of it says less
            self._abandon(before, generators)
        if fault is not None:
            raise fault
        return graph.replay

    def _abandon(self, before: torch.cuda.Stream, generators: Sequence[torch.Generator]) -> None:
        """Leave a capture that failed: torch leaves its stream the current one, and before 2.12 its allocator and its
        generators in the capture (pytorch/pytorch#180395)."""
        torch.cuda.set_stream(before)
        with suppress(RuntimeError):  # where torch has left it
            torch._C._cuda_endAllocateToPool(before.device_index, self._pool)
        # A capture that ends well takes its generators out.
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
        return event.synchronize


def capture(
    call: Callable[[], None],
    recorder: Recorder,
    state: Callable[[], State],
    generators: Sequence[torch.Generator],
) -> Callable[[], None]:
    """Capture `call`, and leave its state as it was: nothing has happened until the result is called.

    Args:
        call: device work at fixed addresses, without arguments or result.
        state: every tensor that `call` changes, by name. One that appears in the warm-up (an optimizer's) starts from
            zeros, as torch's optimizers do.
        generators: that `call` draws from, on the device.

    Raises:
        CaptureError: it could not be captured; state and generators are as before.
    """
    before = {name: tensor.detach().clone() for name, tensor in state().items()}
    random = [generator.get_state() for generator in generators]
    size = "at least"  # of a warm-up that was not done
    try:
        try:
            recorder.warm_up(call, WARM_UP)
            size = "about"
        finally:
            _restore(state(), before)
            for generator, drawn in zip(generators, random, strict=True):
                generator.set_state(drawn)
        return recorder.record(call, generators)
    except RuntimeError as error:
        cause = error.__cause__ if isinstance(error, StudentError) else error
        if isinstance(cause, torch.OutOfMemoryError):
            needed, free = recorder.needed_bytes() / 1e9, recorder.free_bytes() / 1e9
            why = f"out of memory: a captured step keeps {size} {needed:.2f} GB for itself, {free:.2f} GB are free"
        else:
            why = f"{type(cause).__name__}: {_first_line(cause)}"
        raise CaptureError(why) from error


@contextmanager
def _waiting_is_an_error() -> Iterator[None]:
    """What would wait for the device raises: outside of a capture, where nothing is left half done by that."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class RunAhead:
    """Keeps the host at most `STEPS_AHEAD` replays ahead, so that a request to stop is answered soon."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._waits: deque[Callable[[], None]] = deque()

    def launched(self) -> None:
        self._waits.append(self._recorder.mark())
        if len(self._waits) > STEPS_AHEAD:
            self._waits.popleft()()


@torch.no_grad()
def _restore(now: State, before: State) -> None:
    for name, tensor in now.items():
        if name in before:
            tensor.copy_(before[name])
        else:
            tensor.zero_()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"
