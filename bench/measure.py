"""Side-by-side timing in one process; `machine` says on what."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from oekd_fast.common.machine import machine

__all__ = ["Timing", "interleave", "machine"]


@dataclass(frozen=True)
class Timing:
    """Milliseconds a call: median, and the quartiles as the spread."""

    median: float
    lower: float
    upper: float
    samples: int

    def as_dict(self) -> dict:
        return {name: round(value, 5) for name, value in asdict(self).items()}


def interleave(
    variants: dict[str, Callable[[], object]],
    seconds: float,
    min_sample: float = 0.002,
    *,
    calls_before: int = 3,
    wait: Callable[[], object] = lambda: None,
) -> dict[str, Timing]:
    """Times calls by the wall clock in turn, one sample of each a round, so that drift of the machine meets all alike.

    A sample is as many calls as take ``min_sample`` seconds, and ``wait``, for devices that run behind the host; rounds
    go on for ``seconds``, at least ten. Twice ``calls_before`` calls of each come first.
    """

    def sample(call: Callable[[], object], times: int) -> float:
        wait()
        start = time.perf_counter()
        for _ in range(times):
            call()
        wait()
        return (time.perf_counter() - start) / times

    calls = {}
    for name, call in variants.items():
        for _ in range(calls_before):
            call()
        calls[name] = max(1, round(min_sample / sample(call, calls_before)))
    samples = {name: [] for name in variants}
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(next(iter(samples.values()))) < 10:
        for name, call in variants.items():
            samples[name].append(sample(call, calls[name]) * 1e3)
    return {name: _timing(values) for name, values in samples.items()}


def _timing(values: list[float]) -> Timing:
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(median, lower, upper, len(values))
