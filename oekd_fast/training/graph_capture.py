"""Calls on batches that are captured once as a graph and replayed; the warm-up before a capture is undone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from oekd_fast.parallel.executor import StudentError

WARM_UP = 3  # calls before a capture; the last of them chooses no algorithm and creates no state any more
STEPS_AHEAD = 3  # replays that the host may be ahead of the device

State = dict[str, Tensor]


class CaptureError(RuntimeError):
    """A call cannot be captured; the message says why in one line.

    Attributes:
        in_warm_up: whether the call failed before the capture, when it ran on the device.
    """

    def __init__(self, message: str, in_warm_up: bool) -> None:
        super().__init__(message)
        self.in_warm_up = in_warm_up


class Recorder(Protocol):
    """Captures calls on one device. `CudaRecorder` implements it; tests without a GPU use a stand-in."""

    def warm_up(self, call: Callable[[], None], times: int) -> None:
        """Run `call` on the stream of the capture and wait for it.

        Raises:
            RuntimeError: `call` waits for the device, which no capture allows.
        """
        ...

    def record(self, call: Callable[[], None], generators: Sequence[torch.Generator]) -> Callable[[], None]:
        """Capture `call` without running it; the returned function launches it."""
        ...

    def needed_bytes(self) -> int:
        """Return the peak memory of the last warm-up, in bytes, without the memory allocated before it."""
        ...

    def free_bytes(self) -> int:
        """Return the free memory of the device, in bytes."""
        ...

    def mark(self) -> Callable[[], None]:
        """Mark the current point of the device's work; the returned function waits until the device reaches it."""
        ...


class CapturedCalls:
    """Runs calls as replays of captured graphs, and eagerly from the first one on that cannot be captured.

    Attributes:
        eager_because: why calls are not replayed, in one line; None while they are.

    Args:
        recorder: captures the calls; None runs all of them eagerly, for the reason `eager_because`.
        generators: random generators that the calls draw from, on the device.
        after_failure: called after a capture that failed in the middle of a call.
        agree: returns whether all ranks have captured the call, given whether this one has. A replay on one rank does
            not match the eager call of another. None: there is no other rank.
    """

    def __init__(
        self,
        recorder: Recorder | None,
        generators: Sequence[torch.Generator],
        *,
        eager_because: str | None = None,
        after_failure: Callable[[], None] = lambda: None,
        agree: Callable[[bool], bool] | None = None,
    ) -> None:
        self.eager_because = eager_because
        self._agree = agree
        self._recorder, self._generators, self._after_failure = recorder, generators, after_failure
        self._replays: dict[Hashable, tuple[Hashable, Callable[[], None]]] = {}
        self._waits: deque[Callable[[], None]] = deque()

    def run(self, key: Hashable, signature: Hashable, call: Callable[[], None], tensors: Callable[[], State]) -> None:
        """Run `call`, device work at fixed addresses, without arguments or result.

        Args:
            key: identifies the call among those that this object runs.
            signature: `Batches.signature` of the batches that the call takes; a new one has the call captured again.
            tensors: returns every tensor that the call changes, by name.
        """
        replay = self._replay_of(key, signature, call, tensors)
        if replay is None:
            call()
            return
        replay()
        # A host that ran far ahead of the device would answer a request to stop late.
        self._waits.append(self._recorder.mark())
        if len(self._waits) > STEPS_AHEAD:
            self._waits.popleft()()

    def forget(self) -> None:
        """Discard all captured calls; their tensors have been replaced."""
        self._replays.clear()

    def _replay_of(
        self, key: Hashable, signature: Hashable, call: Callable[[], None], tensors: Callable[[], State]
    ) -> Callable[[], None] | None:
        """Return the replay of the call, which is captured now if it was not before; None if calls run eagerly.

        Raises:
            CaptureError: the warm-up failed on this one of several ranks, while the others wait for it.
        """
        if self.eager_because is not None:
            return None
        known, replay = self._replays.get(key, (None, None))
        if replay is None or known != signature:
            failure = None
            try:
                replay = capture(call, self._recorder, tensors, self._generators)
            except CaptureError as error:
                if self._agree is not None and error.in_warm_up:
                    raise
                failure = error
            captured = failure is None
            if self._agree is not None:
                captured = self._agree(captured)
            if not captured:
                self.eager_because = "another rank cannot capture it" if failure is None else str(failure)
                self.forget()
                if failure is not None:
                    self._after_failure()
                return None
            self._replays[key] = signature, replay
        return replay


def capture(
    call: Callable[[], None],
    recorder: Recorder,
    tensors: Callable[[], State],
    generators: Sequence[torch.Generator],
) -> Callable[[], None]:
    """Capture `call` and return a function that replays it. Tensors and generators have the same values afterwards.

    Args:
        call: device work at fixed addresses, without arguments or result.
        tensors: returns every tensor that `call` changes, by name. Those that appear in the warm-up, such as an
            optimizer's, start from zeros, as torch's optimizers do.
        generators: random generators that `call` draws from, on the device.

    Raises:
        CaptureError: `call` could not be captured.
    """
    before = {name: tensor.detach().clone() for name, tensor in tensors().items()}
    random = [generator.get_state() for generator in generators]
    size, in_warm_up = "at least", True
    try:
        try:
            recorder.warm_up(call, WARM_UP)
            size, in_warm_up = "about", False
        finally:
            _restore(tensors(), before)
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
        raise CaptureError(why, in_warm_up) from error


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
