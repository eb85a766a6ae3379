"""Processes that start in milliseconds: forks of one that has imported torch and has no threads."""

import io
import os
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from subprocess import CompletedProcess
from typing import Any

TIMEOUT = 600  # seconds; a deadlock fails instead of hanging


def context() -> BaseContext:
    """Return a context of multiprocessing whose processes have torch imported, and nothing of the package."""
    made = get_context("forkserver")
    made.set_forkserver_preload(["torch"])
    return made


def call_in_new_process(function: Callable, *arguments: Any) -> Any:
    """Return `function(*arguments)`, called in a process of its own. The function must be one of a module."""
    with ProcessPoolExecutor(1, mp_context=context()) as pool:
        return pool.submit(function, *arguments).result(TIMEOUT)


def run_code(code: str, *arguments: str, without: Iterable[str] = ()) -> CompletedProcess:
    """Run a program in a process of its own, as ``python -c`` does, and return its status, output and errors.

    Args:
        without: names of environment variables that are removed first.
    """
    return call_in_new_process(_run_code, textwrap.dedent(code), arguments, tuple(without))


def _run_code(code: str, arguments: tuple[str, ...], without: tuple[str, ...]) -> CompletedProcess:
    for name in without:
        os.environ.pop(name, None)
    sys.argv = ["-c", *arguments]
    status, output, errors = 0, io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(errors):
        try:
            exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=errors)
        except BaseException:
            status = 1
            traceback.print_exc()
    return CompletedProcess(sys.argv, status, output.getvalue(), errors.getvalue())
