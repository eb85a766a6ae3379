"""Call executors with random arguments: ``python -m tests.campaigns.executor_arguments --calls 20000``.

Constructors, forward, backward and the starting order get wrong types, huge and negative numbers, sequences that change
or raise while they are read, tensors without memory and modules without weights, also from several threads at once. A
call has to give the right result or to raise an exception; one with valid arguments may not raise. The executor has to
work afterwards, and the process may neither die nor hang. The calls run in forked processes of limited memory; a seed
makes each call again, and a process that dies names the call.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import resource
import signal
import sys
import time
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from oekd_fast.common.machine import machine

from ..support.campaign_command import run_command
from ..support.hostile_calls import random_call

RESULT = Path(__file__).parent / "results" / "executor_arguments.json"
CHUNK = 500  # calls of a process
MEMORY = 2**31  # bytes that a process may take
TIMEOUT = 120  # seconds after which a call counts as hanging


@dataclass(frozen=True)
class Fault:
    """A call that died, hung or returned something wrong."""

    call: int
    kind: str
    found: str


def outcome(seed: int, number: int) -> tuple[str, str, str]:
    """Make a call; return its kind, "right" or the type of the exception, and what is wrong, "" if nothing is."""
    call = random_call(f"{seed} {number}")
    try:
        came = call.run()
        what, problem = "right", call.check(came)
    except BaseException as error:
        what, problem = type(error).__name__, ""
        if call.valid or isinstance(error, SystemError | AssertionError):
            problem = f"raised {type(error).__name__}: {error}"
    if call.usable is not None and not problem:
        try:
            call.usable()
        except BaseException as error:
            problem = f"then raised {type(error).__name__}: {error}"
    return call.kind, what, problem[:1000]


def run_chunk(seed: int, first: int, last: int, lines: int, errors: Path) -> None:
    """Make the calls from `first` to `last` in a forked process, and write a line before and after each of them."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY,) * 2)
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    with errors.open("w") as file, contextlib.redirect_stderr(None):
        faulthandler.enable(file)
        for number in range(first, last):
            os.write(lines, f"{json.dumps([number])}\n".encode())
            faulthandler.dump_traceback_later(TIMEOUT, exit=True, file=file)
            result = outcome(seed, number)
            faulthandler.cancel_dump_traceback_later()
            os.write(lines, f"{json.dumps([number, *result])}\n".encode())
    os._exit(0)


def fork_chunk(seed: int, first: int, last: int, errors: Path) -> tuple[list[list], int]:
    """Return the lines of a chunk and the status of its process."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            run_chunk(seed, first, last, write, errors)
        finally:
            os._exit(99)
    os.close(write)
    with os.fdopen(read) as pipe:
        lines = [json.loads(line) for line in pipe]
    return lines, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_campaign(calls: int, seed: int, folder: Path) -> dict[str, Any]:
    """Make `calls` calls and return the content of the JSON file."""
    start, faults, first = time.perf_counter(), [], 0
    counts: dict[str, Counter] = {}
    errors = folder / "errors"
    while first < calls:
        last = min(first + CHUNK, calls)
        lines, status = fork_chunk(seed, first, last, errors)
        for number, kind, what, problem in (line for line in lines if len(line) > 1):
            counts.setdefault(kind, Counter())[what] += 1
            if problem:
                faults.append(Fault(number, kind, problem))
                print(f"call {number}: {kind}: {problem}", flush=True)
        if status:
            (number,) = lines[-1][:1] if lines else (first,)
            faults.append(Fault(number, "", f"exit status {status}: {errors.read_text()[:3000]}"))
            print(f"call {number}: {faults[-1].found}", flush=True)
            last = number + 1
        first = last
    return {
        "calls": calls,
        "seed": seed,
        "counts": {kind: dict(counts[kind].most_common()) for kind in sorted(counts)},
        "faults": [asdict(fault) for fault in faults],
        "seconds": round(time.perf_counter() - start, 1),
        "machine": machine(),
        "complete": True,
    }


def main() -> int:
    """Run the command line; the exit status is 1 if a fault was found."""
    result = run_command(__doc__, run_campaign, count=("--calls", 20_000, "calls"), result=RESULT)
    returned = sum(count.get("right", 0) for count in result["counts"].values())
    print(f"{result['calls']} calls, {returned} returned, {len(result['faults'])} faults, {result['seconds']} s")
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
