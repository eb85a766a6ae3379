"""Time of several calls, measured side by side in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

MIN_ROUNDS = 10


@dataclass(frozen=True)
class Timing:
    """Milliseconds a call: the median and both quartiles of the samples."""

    median: float
    lower: float
    upper: float
    samples: int

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Timing:
        """Summarise samples in milliseconds, at least two."""
        lower, median, upper = statistics.quantiles(milliseconds, n=4, method="inclusive")
        return cls(median, lower, upper, len(milliseconds))

    def as_dict(self) -> dict:
        return {name: round(value, 5) for name, value in asdict(self).items()}

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.lower:.3f}, {self.upper:.3f}]"


def interleave(
    variants: dict[str, Callable[[], object]],
    seconds: float,
    min_sample: float = 0.002,
    *,
    calls_before: int = 3,
    wait: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time calls in turn.

    Each round takes one sample of every variant, so that a machine which slows down affects all of them alike. Each
    variant is called 2 * `calls_before` times before the first round.

    Args:
        variants: The call of each variant, by name.
        seconds: Duration of the rounds; there are at least 10 rounds.
        min_sample: Seconds of a sample, which consists of as many calls as take that long.
        calls_before: Untimed calls, and as many that tell how long a call takes.
        wait: Called before the clock is read, for devices that run behind the host.
        clock: Seconds by the clock of the wall, or those that all threads computed: ``time.process_time``.
    """

    def sample(call: Callable[[], object], times: int) -> float:
        wait()
        start = clock()
        for _ in range(times):
            call()
        wait()
        return (clock() - start) / times

    calls = {}
    for name, call in variants.items():
        for _ in range(calls_before):
            call()
        calls[name] = max(1, round(min_sample / sample(call, calls_before)))
    samples = {name: [] for name in variants}
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(next(iter(samples.values()))) < MIN_ROUNDS:
        for name, call in variants.items():
            samples[name].append(sample(call, calls[name]) * 1e3)
    return {name: Timing.of(values) for name, values in samples.items()}
