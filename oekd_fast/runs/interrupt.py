"""Requests to stop, by a signal or by a closed output, which the training loop answers between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from oekd_fast.runs.console import RunConsole

# Number of SIGPIPE, which Windows lacks. Other programs that write to a closed pipe end by it.
CLOSED_OUTPUT = 13


class Interrupted(Exception):
    """The run was asked to stop, saved a checkpoint and stopped.

    Attributes:
        signal_number: the signal; that of SIGPIPE if the output was closed.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class StopRequest:
    """Context in which the first SIGINT, SIGTERM or SIGHUP is only recorded; a second one has its usual effect.

    With `patient` set, all are only recorded. A launcher of several processes may pass on a signal that they have
    received already, and kills them itself if they do not end.

    SIGHUP arrives when the terminal is closed. It stays ignored where it is ignored, as under ``nohup``.
    """

    SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

    def __init__(self) -> None:
        self._received: int | None = None
        self._previous: dict[int, object] = {}
        self._console: RunConsole | None = None
        self.patient = False

    @property
    def signal_number(self) -> int | None:
        """The recorded signal, or that of SIGPIPE after the watched output failed; None before either happens."""
        if self._received is not None:
            return self._received
        return CLOSED_OUTPUT if self._console is not None and self._console.failure is not None else None

    @property
    def reason(self) -> str:
        """The start of a message: why the run stops if no signal arrived, and nothing after a signal."""
        if self._received is not None or self._console is None or self._console.failure is None:
            return ""
        return f"the output cannot be written ({self._console.failure.strerror}), "

    def watch(self, console: RunConsole) -> None:
        """Take a failure of the output of `console` as a request to stop."""
        self._console = console

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python sets handlers there alone
            for number in self.SIGNALS:
                if number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) is signal.SIG_IGN:
                    continue
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        self._restore()

    def request(self, signal_number: int) -> None:
        """Ask the run to stop, as if the signal had arrived."""
        self._received = signal_number

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._received is None:
            self.request(number)
        if not self.patient:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
