"""Calls of executors in daemon threads end before the interpreter does.

Python ends a thread that takes the GIL while the interpreter finalizes. If that happens inside torch, which releases
and takes the GIL in most of its functions, the process is aborted. So an exit waits for the calls in progress, and
refuses new ones.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from typing import Any

# Whether this thread runs a student. Such a call is a part of another one. Executors copy the context to their workers.
_inside: ContextVar[bool] = ContextVar("oekd_fast_inside_a_call", default=False)


class _Calls:
    """Calls in progress in threads other than the main one, which waits for them when the interpreter exits."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running: set[object] = set()
        self._exiting = False

    def begin(self) -> object:
        """Return a token for `end`."""
        call = object()
        with self._changed:
            if self._exiting:
                raise RuntimeError("executor: expected a call before the interpreter exits, got one while it exits")
            self._running.add(call)
        return call

    def end(self, call: object) -> None:
        with self._changed:
            self._running.discard(call)  # a forked child has forgotten it
            self._changed.notify_all()

    def finish(self) -> None:
        """Refuse further calls, and wait for those in progress."""
        with self._changed:
            self._exiting = True
            self._changed.wait_for(lambda: not self._running)

    def forget(self) -> None:
        """Start anew in a forked child, where no other thread runs, and where the lock may be held forever."""
        self.__init__()


_calls = _Calls()  # of the process, as its exit is
atexit.register(_calls.finish)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_calls.forget)


def finished_before_exit(method: Callable) -> Callable:
    """Let an exit of the interpreter wait for calls of `method`, and refuse calls that begin later.

    Calls in the main thread, such as those of ``atexit`` callbacks, are never refused.

    Raises:
        RuntimeError: the interpreter exits.
    """

    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _inside.get():
            return method(self, *args, **kwargs)
        counted = None if threading.current_thread() is threading.main_thread() else _calls.begin()
        before = _inside.set(True)
        try:
            return method(self, *args, **kwargs)
        finally:
            _inside.reset(before)
            if counted is not None:
                _calls.end(counted)

    return call
