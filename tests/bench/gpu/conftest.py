"""A worker of bench.gpu that runs in the process of the test, and results as the parts write them."""

import contextlib
import time
from types import SimpleNamespace

import pytest

from bench.gpu import worker
from bench.gpu.context import Context
from bench.gpu.rehearsal import Rehearsal


def start_here(folder, dry_run=True):
    """Return a function that starts workers as `runner.start_worker` does; each is done when it returns."""

    def start(part, seconds, skip, output):
        with open(output, "w", closefd=False) as log, contextlib.redirect_stdout(log):
            status = worker.run(part, folder, seconds, skip, dry_run)
        return SimpleNamespace(pid=None, returncode=status, poll=lambda: status)

    return start


@pytest.fixture
def rehearsal():
    """A context with the stand-in for a GPU."""
    return Context(Rehearsal(), time.monotonic() + 1000, {})


def step_result(ms, profiles=None, **more):
    """Return a result of a step with the times of its variants."""
    ours = ms["ours_captured"]
    return {
        "problem": {"model": "resnet20", "batch_size": 128, "precision": "bf16"},
        "variants": {name: {"ms": value} for name, value in ms.items()},
        "reasons": {},
        "speedups": {"ours_captured": {name: value / ours for name, value in ms.items() if name != "ours_captured"}},
        "profiles": profiles or {},
        **more,
    }


def profile(kernels, busy_share=0.99):
    """Return a profile of kernels given as (name, number, microseconds)."""
    total = sum(us for *_, us in kernels)
    launches = sum(number for _, number, _ in kernels)
    figures = {"launches": launches, "milliseconds": total / 1e3, "busy_share": busy_share, "running": 1.0}
    return figures | {"total_us": total, "kernels": kernels}


def loss_result(rows, classes, ms, share=None, wall=None):
    """Return a result of a size of the loss."""
    derived = {"gigabytes_per_second": 1.0, "binds": "memory", "faster_than": {"eager": 5.0}}
    return {
        "rows": rows,
        "classes": classes,
        "dtype": "bfloat16",
        "device_ms": {"value_and_grad": {"median": ms}},
        "wall_ms": {"value_and_grad": {"median": wall or ms}},
        "derived": {"value_and_grad": derived | ({} if share is None else {"share_of_copy": share})},
    }
