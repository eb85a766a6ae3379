"""BatchNorm, residual and ReLU in training, forward and backward, against PyTorch and torch.compile, on a CPU.

    python -m bench.ops.norm_relu [--dtype bfloat16] [--sizes 128x16x32 ...] [--threads 1] [--seconds 2]
        [--json FILE]

Bandwidths count whole maps: forward reads x twice and writes y; backward reads dy and x twice and writes dx. With a
residual, forward reads it once, and backward reads y and writes the residual's gradient, which replaces dy in the
second pass.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from oekd_fast.common.machine import machine
from oekd_fast.layers.norm_relu import norm_relu

from .. import result_file
from ..measure import Timing, interleave
from .variants import compiled

# (B, C, H = W): the first and the third of five ResNet-20 students, stage by stage.
SIZES = ((128, 16, 32), (128, 9, 32), (128, 32, 16), (128, 19, 16), (128, 64, 8), (128, 38, 8))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
VARIANTS = ("eager", "compiled", "fused")
MAPS = {False: 8, True: 11}  # maps that are read or written, without and with a residual
THREADS = 1  # a student's share of the cores while the others run beside it


def variants(
    batch: int,
    channels: int,
    size: int,
    residual: bool,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    compiled: Callable = compiled,
) -> dict[str, Callable[[], object]]:
    """Return the calls by name, in the order of `VARIANTS`; each computes the output and returns all gradients.

    Maps have the type `dtype`; parameters and statistics are float32. `compiled` compiles the second variant.
    """
    generator = torch.Generator().manual_seed(0)

    def new_map() -> torch.Tensor:
        values = torch.randn(batch, channels, size, size, generator=generator)
        return values.to(device, dtype).contiguous(memory_format=torch.channels_last)

    inputs = [new_map().requires_grad_() for _ in range(1 + residual)]
    dy = new_map()

    def step(forward: Callable, norm: nn.BatchNorm2d) -> Callable[[], object]:
        return lambda: torch.autograd.grad(forward(norm, *inputs), [*inputs, *norm.parameters()], dy)

    forwards = norm_relu, compiled(norm_relu), partial(norm_relu, fused=True)
    return {
        name: step(each, nn.BatchNorm2d(channels, device=device)) for name, each in zip(VARIANTS, forwards, strict=True)
    }


def bytes_moved(batch: int, channels: int, size: int, residual: bool, dtype: torch.dtype = torch.float32) -> int:
    """Return the bytes of all maps that forward and backward read and write."""
    return MAPS[residual] * batch * channels * size**2 * dtype.itemsize


def measure(batch: int, channels: int, size: int, residual: bool, dtype: str, seconds: float) -> dict:
    """Time all variants of a size in turn for about `seconds`. `dtype` is a key of `DTYPES`."""
    problem = batch, channels, size, residual, DTYPES[dtype]
    timings = interleave(variants(*problem), seconds)
    fused = timings["fused"].median
    return {
        "batch": batch,
        "channels": channels,
        "size": size,
        "residual": residual,
        "dtype": dtype,
        "milliseconds": {name: timing.as_dict() for name, timing in timings.items()},
        "speedup": {name: round(timings[name].median / fused, 2) for name in ("eager", "compiled")},
        "gigabytes_per_second": round(bytes_moved(*problem) / fused / 1e6, 2),
    }


def line(result: dict) -> str:
    """Return the result of one size as a line of text."""
    shape = f"{result['batch']}x{result['channels']}x{result['size']}x{result['size']}"
    times = "  ".join(f"{name} {Timing(**timing)}" for name, timing in result["milliseconds"].items())
    speedup = " and ".join(f"{factor}x {name}" for name, factor in result["speedup"].items())
    return (
        f"{shape:<14} {result['dtype']:<8} {'residual' if result['residual'] else '':<8} ms [quartiles]: {times}"
        f"  | fused {speedup}, {result['gigabytes_per_second']} GB/s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--sizes", nargs="+", default=["x".join(map(str, s)) for s in SIZES], metavar="BxCxH")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="type of the maps")
    parser.add_argument("--threads", type=int, default=THREADS, help="threads of PyTorch")
    parser.add_argument("--seconds", type=float, default=2.0, help="duration of the measurement of a size")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    where = machine()
    print(result_file.describe(where), flush=True)
    results = []
    for text in arguments.sizes:
        for residual in (False, True):
            results.append(measure(*map(int, text.split("x")), residual, arguments.dtype, arguments.seconds))
            print(line(results[-1]), flush=True)
    if arguments.json:
        what = "BatchNorm, residual, ReLU: forward and backward"
        result_file.write(arguments.json, result_file.report(what, where, results))


if __name__ == "__main__":
    main()
