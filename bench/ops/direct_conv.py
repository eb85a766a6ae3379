"""Convolutions of a family's students in training, forward and backward, against PyTorch's in both layouts, on a CPU.

    python -m bench.ops.direct_conv [--json FILE] [--model resnet20] [--threads 1] [--seconds 1]

"taken" says whether `DirectConv2d` takes the direct form for that shape.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional

from oekd_fast.common.machine import machine
from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.layers.direct_conv import DirectConv2d, use_direct_convs
from oekd_fast.runs.host_memory import keep_freed_memory

from ..measure import Timing, interleave

FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


def shapes(model: str, image_size: int) -> dict[tuple[int, int, int, int], int]:
    """How often a family's forward has a convolution (channels in, out, pixels of a side, stride)."""
    counts: dict[tuple[int, int, int, int], int] = {}

    def count(conv: DirectConv2d, inputs: tuple[torch.Tensor], output: object) -> None:
        key = (conv.in_channels, conv.out_channels, inputs[0].shape[3], conv.stride[0])
        counts[key] = counts.get(key, 0) + 1

    with torch.device("meta"):
        family = build_ensemble(model, 5, 100)
        for part in family.modules():
            if isinstance(part, DirectConv2d):
                part.register_forward_hook(count)
        family(torch.empty(1, 3, image_size, image_size))
    return counts


def variants(batch: int, channels: int, outputs: int, size: int, stride: int) -> dict[str, Callable[[], object]]:
    """Each call makes the output and all gradients."""
    x = torch.randn(batch, channels, size, size)
    weight = torch.randn(outputs, channels, 3, 3) / (3 * channels**0.5)
    dy = torch.randn(functional.conv2d(x, weight, stride=stride, padding=1).shape)

    def pytorch(form: torch.memory_format) -> Callable[[], object]:
        tensors = [t.contiguous(memory_format=form) for t in (dy, x, weight)]
        geometry = ([stride, stride], [1, 1], [1, 1], False, [0, 0], 1)

        def call() -> object:
            functional.conv2d(tensors[1], tensors[2], stride=stride, padding=1)
            return torch.ops.aten.convolution_backward(*tensors, None, *geometry, [True, True, False])

        return call

    maps = [t.contiguous(memory_format=torch.channels_last) for t in (dy, x)]

    def direct() -> object:
        torch.ops.oekd_fast.direct_conv(maps[1], weight, stride)
        return torch.ops.oekd_fast.direct_conv_backward(*maps, weight, stride, True, True)

    return {name: pytorch(form) for name, form in FORMATS.items()} | {"direct": direct}


def measure(shape: tuple[int, int, int, int], count: int, batch: int, seconds: float) -> dict:
    channels, outputs, size, stride = shape
    timings = interleave(variants(batch, channels, outputs, size, stride), seconds)
    conv = DirectConv2d(channels, outputs, stride)
    use_direct_convs(conv)
    operations = 3 * 2 * 9 * channels * outputs * batch * (-(-size // stride)) ** 2
    return {
        "shape": f"{channels}->{outputs}, {size}x{size}, stride {stride}",
        "in_a_family": count,
        "milliseconds": {name: timing.as_dict() for name, timing in timings.items()},
        "gigaflops": round(operations / timings["direct"].median / 1e6, 1),
        "taken": conv.takes(torch.empty(batch, channels, size, size).to(memory_format=torch.channels_last)),
    }


def line(result: dict) -> str:
    def ms(name: str) -> str:
        t = Timing(**result["milliseconds"][name])
        return f"{t.median:6.2f} [{t.lower:.2f}, {t.upper:.2f}]"

    return (
        f"{result['shape']:<26} x{result['in_a_family']:<2} ms [quartiles]: NCHW {ms('nchw')}  channels_last "
        f"{ms('channels_last')}  direct {ms('direct')}  | {result['gigaflops']} GFLOP/s{', taken' * result['taken']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1, help="as many as a student has, side by side with others")
    parser.add_argument("--seconds", type=float, default=1.0, help="of measuring, a shape")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as the trainer does
    where = machine()
    print(", ".join(f"{name} {value}" for name, value in where.items()), flush=True)
    results = []
    for shape, count in shapes(arguments.model, arguments.image_size).items():
        results.append(measure(shape, count, arguments.batch_size, arguments.seconds))
        print(line(results[-1]), flush=True)
    if arguments.json:
        report = {"what": "3x3 convolutions: forward and backward", "machine": where, "results": results}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
