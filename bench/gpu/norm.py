"""BatchNorm, residual and ReLU in training on a GPU, forward and backward: a case is one map.

The maps are those of the students of ResNet-20, of which ResNet-110 has more.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..ops import norm_relu
from .context import Context

TINY = "2x3x4 float32 residual"
ROUNDS = 30


def keys(argument: str, tiny: bool) -> list[str]:
    if tiny:
        return [TINY]
    sizes = ["x".join(map(str, size)) for size in norm_relu.SIZES]
    return [f"{size} bfloat16 {form}" for size in sizes for form in ("residual", "alone")]


def measure(key: str, context: Context) -> Iterator[dict]:
    size, dtype, form = key.split()
    device, problem = context.device, (*map(int, size.split("x")), form == "residual", norm_relu.DTYPES[dtype])
    calls = norm_relu.variants(*problem, device.name, device.compiled)
    graphs = {name: device.captured(call, 1) for name, call in calls.items()}
    times, moved = device.time_cold(graphs, ROUNDS), norm_relu.bytes_moved(*problem)
    yield {
        "size": size,
        "dtype": dtype,
        "residual": form == "residual",
        "bytes": moved,
        "milliseconds_in_graph": {name: timing.as_dict() for name, timing in times.items()},
        "gigabytes_per_second_in_graph": {name: round(moved / t.median / 1e6, 1) for name, t in times.items()},
    }


def lines(key: str, result: dict) -> Iterator[str]:
    yield f"{key}, us in a graph (GB/s of the fused form's traffic):"
    for name, timing in result["milliseconds_in_graph"].items():
        bandwidth = result["gigabytes_per_second_in_graph"][name]
        yield f"  {name:<16} {timing['median'] * 1e3:10.1f} ({bandwidth:.0f})"
