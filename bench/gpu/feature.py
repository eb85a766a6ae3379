"""The intermediate loss on a GPU, as bench.ops.feature_kd measures it: a case is one block."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..ops import feature_kd
from .context import Context

TINY = "4x3x2@2 float32"
ROUNDS = 30


def keys(argument: str, tiny: bool) -> list[str]:
    return [TINY] if tiny else [f"{block} bfloat16" for block in feature_kd.BLOCKS]


def measure(key: str, context: Context) -> Iterator[dict]:
    block, name = key.split()
    device, dtype = context.device, getattr(torch, name)
    batch = 2 if device.tiny else feature_kd.BATCH
    calls = feature_kd.variants(
        feature_kd.Block.parse(block), batch, dtype, True, device.name, compiled=device.compiled
    )
    graphs = {name: device.captured(call, 1) for name, call in calls.items()}
    times, times_in_graph = device.time_cold(calls, ROUNDS), device.time_cold(graphs, ROUNDS)
    yield feature_kd.result(block, batch, dtype, True, times, times_in_graph)


def lines(key: str, result: dict) -> Iterator[str]:
    yield f"{key}, us in a graph (GB/s):"
    for name, timing in result["milliseconds_in_graph"].items():
        bandwidth = result["gigabytes_per_second_in_graph"][name]
        yield f"  {name:<16} {timing['median'] * 1e3:10.1f} ({bandwidth:.0f})"
