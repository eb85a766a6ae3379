"""SIGINT (Ctrl-C) and SIGTERM as a request to stop, which the training loop answers between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Interrupted(Exception):
    """The run received a signal, saved a checkpoint and stopped.

    Attributes:
        signal_number: the signal.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class StopRequest:
    """Context in which the first SIGINT or SIGTERM is only recorded; a second one has its usual effect.

    Attributes:
        signal_number: the recorded signal; None before it arrives.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python sets handlers there alone
            self._previous = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
