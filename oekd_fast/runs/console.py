"""Console of a command that outlives its output: a closed pipe or terminal, or a log on a full disk."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console

from oekd_fast.common.text import print_line

_FILE_WIDTH = 80  # columns


class RunConsole(Console):
    """Console on standard output or standard error whose failures are recorded instead of raised.

    After the first failure nothing is written any more.

    Attributes:
        failure: error of the first write that failed; None if all have succeeded.
        in_notebook: whether the process is the kernel of a notebook, to which standard output is written as text.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        self.failure: OSError | None = None
        self.in_notebook = Console().is_jupyter
        file = _Guarded(self, stderr)
        terminal = _is_terminal(file)
        super().__init__(
            file=file,
            stderr=stderr,
            # Lines of a file are not as wide as the terminal that the command was started from.
            width=None if terminal or "COLUMNS" in os.environ else _FILE_WIDTH,
            force_interactive=None if terminal else False,  # FORCE_COLOR asks for colours, not for a cursor
            force_jupyter=False,  # lines are text; rich would make an output of HTML for each of them
        )


class _Guarded:
    """Current standard output or standard error, which reports failed writes to a console.

    The stream is looked up at each access, because it may be replaced while the program runs.
    """

    def __init__(self, console: RunConsole, stderr: bool) -> None:
        self._console, self._stderr = console, stderr

    @property
    def rich_proxied_file(self) -> _Guarded:
        """The file that rich writes to; a live display puts a proxy of itself in the place of the stream."""
        return self

    @property
    def _stream(self) -> Any:
        stream = sys.stderr if self._stderr else sys.stdout
        stream = getattr(stream, "rich_proxied_file", stream)
        return _Nowhere() if stream is None else stream  # None if the process was started with a closed stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(lambda: self._stream.flush())

    def _attempt(self, action: Callable[[], Any]) -> None:
        if self._console.failure is not None:
            return
        try:
            action()
        except OSError as error:
            self._console.failure = error
            self._console.quiet = True


class _Nowhere(io.TextIOBase):
    def write(self, text: str) -> int:
        return len(text)


def in_notebook(console: Console) -> bool:
    """Whether what `console` prints appears in a notebook."""
    return console.in_notebook if isinstance(console, RunConsole) else console.is_jupyter


def _is_terminal(stream: Any) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # the stream is closed
        return False


def finish_output(*consoles: RunConsole) -> None:
    """Discard what the streams of failed consoles still buffer, so that the end of the process does not write it.

    For commands alone, since it changes the streams of the process.
    """
    for console in consoles:
        if console.failure is not None:
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), console.file.fileno())


@contextlib.contextmanager
def warnings_as_lines(console: Console) -> Iterator[None]:
    """Show each warning as one line of `console`, without the place in the code that issued it."""

    def show(message: Warning | str, *_: Any) -> None:
        print_line(console, f"warning: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
