"""Time on a GPU by events, variants in turn, without what the host takes to launch; and what the host takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from ..measure import Timing

HOLD_CYCLES = 4_000_000  # about 2 ms: the host has queued a call before the GPU gets to its first kernel
CALLS_BEFORE = 3
LEAST_SAMPLES, MOST_SAMPLES = 10, 300


def device_milliseconds(call: Callable[[], object]) -> float:
    """Of one call, between two events."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(HOLD_CYCLES)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def in_turn(
    calls: dict[str, Callable[[], object]],
    seconds: float,
    repetitions: int = 1,
    sample: Callable[[Callable[[], object]], float] = device_milliseconds,
) -> dict[str, Timing]:
    """Milliseconds of a repetition; a call is so many. One sample of each a round, so that drift meets all alike."""
    for call in calls.values():
        for _ in range(CALLS_BEFORE):
            call()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    for done in range(MOST_SAMPLES):
        if done >= LEAST_SAMPLES and time.perf_counter() - start > seconds:
            break
        for name, call in calls.items():
            samples[name].append(sample(call) / repetitions)
    return {name: timing(values) for name, values in samples.items()}


def captured(call: Callable[[], object], repetitions: int) -> Callable[[], None]:
    """`repetitions` calls as one CUDA graph: nothing is left of the host in their time."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(CALLS_BEFORE):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repetitions):
            call()
    return graph.replay


def wall_milliseconds(call: Callable[[], object], calls: int = 50, samples: int = 10) -> Timing:
    """Of a call from eager Python, many behind each other: what the host takes, where the GPU is faster."""
    values = []
    for _ in range(samples):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
        values.append((time.perf_counter() - start) / calls * 1e3)
    return timing(values)


def timing(values: list[float]) -> Timing:
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(median, lower, upper, len(values))
