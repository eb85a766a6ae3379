"""The 3x3 convolutions of a family in training, forward and backward, against PyTorch in both layouts, on a CPU.

    python -m bench.ops.direct_conv [--json FILE] [--model resnet20] [--threads 1] [--seconds 1]

"taken" says whether training uses the direct form for that shape on this processor.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from oekd_fast.common.machine import machine
from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.layers.direct_conv import conv3x3, takes
from oekd_fast.runs.host_memory import keep_freed_memory

from .. import result_file
from ..measure import Timing, interleave

BATCH, IMAGE_SIZE, THREADS = 128, 32, 1  # one thread: a student's share of the cores while the others run beside it
FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
VARIANTS = (*FORMATS, "direct")


@dataclass(frozen=True)
class Shape:
    """A 3x3 convolution of square maps with padding 1.

    Attributes:
        channels: Channels of the input; `outputs` those of the output.
        size: Height and width of the input.
    """

    channels: int
    outputs: int
    size: int
    stride: int

    def __str__(self) -> str:
        return f"{self.channels}->{self.outputs}, {self.size}x{self.size}, stride {self.stride}"

    def operations(self, batch: int) -> int:
        """Return the operations of forward and both gradients, two for each multiply-add."""
        return 3 * 2 * 9 * self.channels * self.outputs * batch * (-(-self.size // self.stride)) ** 2


def shapes(model: str = "resnet20", image_size: int = IMAGE_SIZE) -> dict[Shape, int]:
    """Return how often the forward of a family of five has each convolution."""
    counts: dict[Shape, int] = {}

    def count(conv: nn.Conv2d, inputs: tuple[torch.Tensor], output: object) -> None:
        shape = Shape(conv.in_channels, conv.out_channels, inputs[0].shape[3], conv.stride[0])
        counts[shape] = counts.get(shape, 0) + 1

    with torch.device("meta"):
        family = build_ensemble(model, 5, 100)
        for part in family.modules():
            if isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3):
                part.register_forward_hook(count)
        family(torch.empty(1, 3, image_size, image_size))
    return counts


def variants(shape: Shape, batch: int) -> dict[str, Callable[[], object]]:
    """Return the calls by name, in the order of `VARIANTS`; each computes the output and all gradients."""
    stride = shape.stride
    x = torch.randn(batch, shape.channels, shape.size, shape.size)
    weight = torch.randn(shape.outputs, shape.channels, 3, 3) / (3 * shape.channels**0.5)
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


def taken(shape: Shape, batch: int) -> bool:
    """Return whether training uses the direct form for this shape."""
    x = torch.empty(batch, shape.channels, shape.size, shape.size)
    return takes(conv3x3(shape.channels, shape.outputs, shape.stride), x.to(memory_format=torch.channels_last))


def measure(shape: Shape, count: int, batch: int, seconds: float) -> dict:
    """Time all variants of a shape in turn for about `seconds`."""
    timings = interleave(variants(shape, batch), seconds)
    return {
        "shape": str(shape),
        "in_a_family": count,
        "milliseconds": {name: timing.as_dict() for name, timing in timings.items()},
        "gigaflops": round(shape.operations(batch) / timings["direct"].median / 1e6, 1),
        "taken": taken(shape, batch),
    }


def line(result: dict) -> str:
    """Return the result of one shape as a line of text."""
    times = "  ".join(f"{name} {Timing(**timing)}" for name, timing in result["milliseconds"].items())
    return (
        f"{result['shape']:<26} x{result['in_a_family']:<2} ms [quartiles]: {times}"
        f"  | {result['gigaflops']} GFLOP/s{', taken' * result['taken']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch-size", type=int, default=BATCH)
    parser.add_argument("--image-size", type=int, default=IMAGE_SIZE, help="height = width, in pixels")
    parser.add_argument("--threads", type=int, default=THREADS, help="threads of PyTorch")
    parser.add_argument("--seconds", type=float, default=1.0, help="duration of the measurement of a shape")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as the trainer does
    where = machine()
    print(result_file.describe(where), flush=True)
    results = []
    for shape, count in shapes(arguments.model, arguments.image_size).items():
        results.append(measure(shape, count, arguments.batch_size, arguments.seconds))
        print(line(results[-1]), flush=True)
    if arguments.json:
        what = "3x3 convolutions: forward and backward"
        result_file.write(arguments.json, result_file.report(what, where, results))


if __name__ == "__main__":
    main()
