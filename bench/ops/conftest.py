"""Fixture that times the variants of an op with pytest-benchmark."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from oekd_fast.common.machine import machine

from ..measure import Timing

CALLS_BEFORE = 3


@pytest.fixture
def time_call(benchmark: BenchmarkFixture) -> Callable[..., None]:
    """Return a function which times a call.

    Its arguments are the call, the group of variants that the call is compared with, and the bytes that the call moves.
    The call runs before the clock starts, so that torch.compile is done by then. The saved file holds the same
    statistics as the result files of the interleaved runs, in `extra_info`.
    """

    def run(call: Callable[[], object], group: str, bytes_moved: int) -> None:
        for _ in range(CALLS_BEFORE):
            call()
        benchmark.group = group
        benchmark(call)
        if benchmark.stats is None:  # --benchmark-disable: called once, not timed
            return
        timing = Timing.of([seconds * 1e3 for seconds in benchmark.stats.stats.data])
        benchmark.extra_info["milliseconds"] = timing.as_dict()
        benchmark.extra_info["gigabytes_per_second"] = float(f"{bytes_moved / timing.median / 1e6:.3g}")

    return run


@pytest.fixture
def set_threads():
    """Return a function which sets PyTorch's number of threads until the end of the benchmark."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def pytest_benchmark_update_machine_info(config, machine_info) -> None:
    """Add what the result files say of the machine; the commit stays apart, in pytest-benchmark's own entry."""
    machine_info["oekd_fast"] = {name: value for name, value in machine().items() if name != "commit"}
