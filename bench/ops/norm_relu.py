"""BatchNorm, residual and ReLU of a training step, forward and backward, against plain PyTorch, on a CPU.

    python -m bench.ops.norm_relu [--json FILE] [--sizes 128x16x32 ...] [--threads 1] [--seconds 2]

Bytes model, in maps: forward reads x twice and writes y; backward reads dy and x twice and writes dx. A residual is
read once; backward then reads y too, and writes the residual's gradient, which it reads in place of dy the second time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch

from oekd_fast.layers.norm_relu import NormReLU, use_fused_norms

from ..measure import Timing, interleave, machine

# (B, C, H = W): the first and the third of five ResNet20 students, stage by stage.
SIZES = ((128, 16, 32), (128, 9, 32), (128, 32, 16), (128, 19, 16), (128, 64, 8), (128, 38, 8))
MAPS = {False: 8, True: 11}  # of the bytes model, without and with a residual


def variants(batch: int, channels: int, size: int, residual: bool) -> dict[str, Callable[[], object]]:
    """Each call makes the output and all gradients."""
    generator = torch.Generator().manual_seed(0)

    def new_map() -> torch.Tensor:
        values = torch.randn(batch, channels, size, size, generator=generator)
        return values.contiguous(memory_format=torch.channels_last)

    inputs = [new_map().requires_grad_() for _ in range(1 + residual)]
    dy = new_map()

    def step(fused: bool) -> Callable[[], object]:
        norm = NormReLU(channels)
        use_fused_norms(norm, fused)
        return lambda: torch.autograd.grad(norm(*inputs), [*inputs, *norm.parameters()], dy)

    return {"plain": step(False), "fused": step(True)}


def measure(batch: int, channels: int, size: int, residual: bool, seconds: float) -> dict:
    timings = interleave(variants(batch, channels, size, residual), seconds)
    traffic = MAPS[residual] * batch * channels * size**2 * 4
    return {
        "batch": batch,
        "channels": channels,
        "size": size,
        "residual": residual,
        "milliseconds": {name: timing.as_dict() for name, timing in timings.items()},
        "speedup": round(timings["plain"].median / timings["fused"].median, 2),
        "gigabytes_per_second": round(traffic / timings["fused"].median / 1e6, 2),
    }


def line(result: dict) -> str:
    def ms(name: str) -> str:
        t = Timing(**result["milliseconds"][name])
        return f"{t.median:7.3f} [{t.lower:.3f}, {t.upper:.3f}]"

    shape = f"{result['batch']}x{result['channels']}x{result['size']}x{result['size']}"
    return (
        f"{shape:<14} {'residual' if result['residual'] else '':<8} ms [quartiles]: plain {ms('plain')}  "
        f"fused {ms('fused')}  | {result['speedup']}x, {result['gigabytes_per_second']} GB/s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--sizes", nargs="+", default=["x".join(map(str, s)) for s in SIZES], metavar="BxCxH")
    parser.add_argument("--threads", type=int, default=1, help="as many as a student has, side by side with others")
    parser.add_argument("--seconds", type=float, default=2.0, help="of measuring, a size")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    where = machine()
    print(", ".join(f"{name} {value}" for name, value in where.items()), flush=True)
    results = []
    for text in arguments.sizes:
        for residual in (False, True):
            results.append(measure(*map(int, text.split("x")), residual, arguments.seconds))
            print(line(results[-1]), flush=True)
    if arguments.json:
        report = {"what": "BatchNorm, residual, ReLU: forward and backward", "machine": where, "results": results}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
