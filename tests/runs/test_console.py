"""Consoles whose output fails: closed pipes, closed terminals, full disks."""

import errno
import io
import sys
import warnings

import pytest

from oekd_fast.runs.console import RunConsole, warnings_as_lines
from oekd_fast.runs.interrupt import StopRequest


class Failing(io.StringIO):
    """Output that fails from the second line on."""

    def __init__(self, code):
        super().__init__()
        self._code = code

    def write(self, text):
        if "\n" in self.getvalue():
            raise OSError(self._code, "the reason")
        return super().write(text)


@pytest.mark.parametrize("code", [errno.EPIPE, errno.EIO, errno.ENOSPC])
def test_a_failed_output_is_a_request_to_stop(monkeypatch, code):
    monkeypatch.setattr(sys, "stdout", Failing(code))
    console, stop = RunConsole(), StopRequest()
    stop.watch(console)
    console.print("first")
    assert console.failure is None and stop.signal_number is None and stop.reason == ""
    console.print("second")
    console.print("third")
    assert console.failure.errno == code and stop.signal_number == 13
    assert stop.reason == "the output cannot be written (the reason), "
    assert sys.stdout.getvalue() == "first\n"


def test_the_current_stream_is_written_to(capsys, monkeypatch):
    console, errors = RunConsole(), RunConsole(stderr=True)
    console.print("a result")
    errors.print("an error")
    assert tuple(capsys.readouterr()) == ("a result\n", "an error\n")
    monkeypatch.setattr(sys, "stdout", None)  # as in a process that was started with a closed output
    console.print("nowhere")
    assert console.failure is None


def test_a_warning_is_one_line(capsys):
    with warnings_as_lines(RunConsole(stderr=True)):
        warnings.warn("skipped a damaged checkpoint, [x]", stacklevel=1)
    assert capsys.readouterr().err == "warning: skipped a damaged checkpoint, [x]\n"
