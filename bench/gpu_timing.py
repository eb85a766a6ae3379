"""Device time of calls on a GPU, and the wall time that their launches take on the host."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from .measure import MIN_ROUNDS, Timing

HOLD_CYCLES = 4_000_000  # about 2 ms, in which the host queues a whole call behind the start event
CALLS_BEFORE = 3
MAX_ROUNDS = 300


def device_milliseconds(call: Callable[[], object]) -> float:
    """Return the milliseconds between an event before one call and an event after it."""
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
    """Time calls on the device in turn: each round takes one sample of every call.

    Args:
        calls: The calls by name.
        seconds: Duration of the rounds; there are between 10 and 300 rounds.
        repetitions: Number of repetitions that one call consists of; the results are for one repetition.
        sample: Returns the milliseconds of a call.
    """
    for call in calls.values():
        for _ in range(CALLS_BEFORE):
            call()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    for done in range(MAX_ROUNDS):
        if done >= MIN_ROUNDS and time.perf_counter() - start > seconds:
            break
        for name, call in calls.items():
            samples[name].append(sample(call) / repetitions)
    return {name: Timing.of(values) for name, values in samples.items()}


def captured(call: Callable[[], object], repetitions: int) -> Callable[[], None]:
    """Capture `repetitions` calls as one CUDA graph, whose replay takes no time on the host."""
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
    """Time `calls` calls in a row by the wall clock: the time of the host, where the GPU is faster than the host."""
    values = []
    for _ in range(samples):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
        values.append((time.perf_counter() - start) / calls * 1e3)
    return Timing.of(values)
