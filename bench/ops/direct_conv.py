"""The 3x3 convolutions of a family in training, forward and backward, against PyTorch in both layouts, on a CPU.

    python -m bench.ops.direct_conv [--json FILE] [--model resnet20] [--threads 1] [--seconds 1]

"used" is the form that training uses for that shape on this processor: "direct", "winograd", or "pytorch". Winograd's
form needs stride 1 and 8 channels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from oekd_fast.common.machine import machine
from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.layers import direct_conv as direct_form
from oekd_fast.layers import winograd as winograd_form
from oekd_fast.runs.host_memory import keep_freed_memory

from .. import result_file
from ..measure import Timing, interleave

Results = tuple[Tensor, Tensor, Tensor]
ERROR_BATCH = 16
BATCH, IMAGE_SIZE, THREADS = 128, 32, 1  # one thread: a student's share of the cores while the others run beside it
FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
VARIANTS = (*FORMATS, "direct", "winograd")


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


def problem(shape: Shape, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, weight and dy, the same in every call."""
    generator = torch.Generator().manual_seed(0)
    size = -(-shape.size // shape.stride)
    x = torch.randn(batch, shape.channels, shape.size, shape.size, generator=generator)
    weight = torch.randn(shape.outputs, shape.channels, 3, 3, generator=generator) / (3 * shape.channels**0.5)
    return x, weight, torch.randn(batch, shape.outputs, size, size, generator=generator)


def by_pytorch(x: Tensor, weight: Tensor, dy: Tensor, stride: int) -> Results:
    """Return y, dx and dweight in the dtype of the tensors."""
    y = functional.conv2d(x, weight, stride=stride, padding=1)
    geometry = ([stride, stride], [1, 1], [1, 1], False, [0, 0], 1)
    return y, *torch.ops.aten.convolution_backward(dy, x, weight, None, *geometry, [True, True, False])[:2]


def variants(shape: Shape, batch: int) -> dict[str, Callable[[], Results]]:
    """Return the calls of those `VARIANTS` that support the shape; each computes y, dx and dweight."""
    stride, (x, weight, dy) = shape.stride, problem(shape, batch)

    def pytorch(form: torch.memory_format) -> Callable[[], Results]:
        return partial(by_pytorch, *(t.contiguous(memory_format=form) for t in (x, weight, dy)), stride)

    pixels = [t.contiguous(memory_format=torch.channels_last) for t in (dy, x)]

    def direct() -> Results:
        y = torch.ops.oekd_fast.direct_conv(pixels[1], weight, stride)
        return y, *torch.ops.oekd_fast.direct_conv_backward(*pixels, weight, stride, True, True)

    def winograd() -> Results:
        y = torch.ops.oekd_fast.winograd_conv(pixels[1], weight)
        return y, *torch.ops.oekd_fast.winograd_conv_backward(*pixels, weight, True, True)

    calls = {name: pytorch(form) for name, form in FORMATS.items()} | {"direct": direct}
    supported = stride == 1 and min(shape.channels, shape.outputs) >= winograd_form.LEAST_CHANNELS
    return calls | ({"winograd": winograd} if supported else {})


def errors(shape: Shape) -> dict[str, dict[str, float]]:
    """Return the errors of y, dx and dweight of each variant against float64, relative to the norm."""
    exact = by_pytorch(*(t.double() for t in problem(shape, ERROR_BATCH)), shape.stride)
    return {
        name: {
            result: float(f"{(got.double() - true).norm() / true.norm():.2e}")
            for result, got, true in zip(("y", "dx", "dweight"), call(), exact, strict=True)
        }
        for name, call in variants(shape, ERROR_BATCH).items()
    }


def used(shape: Shape, batch: int) -> str:
    """Return the form that training uses for this shape: "winograd", "direct" or "pytorch"."""
    x = torch.empty(batch, shape.channels, shape.size, shape.size).to(memory_format=torch.channels_last)
    conv = direct_form.conv3x3(shape.channels, shape.outputs, shape.stride)
    if winograd_form.takes(conv, x):
        return "winograd"
    return "direct" if direct_form.takes(conv, x) else "pytorch"


def measure(shape: Shape, count: int, batch: int, seconds: float) -> dict:
    """Time all variants of a shape in turn for about `seconds`."""
    timings = interleave(variants(shape, batch), seconds)
    return {
        "shape": str(shape),
        "in_a_family": count,
        "milliseconds": {name: timing.as_dict() for name, timing in timings.items()},
        "gigaflops": {name: round(shape.operations(batch) / t.median / 1e6, 1) for name, t in timings.items()},
        "errors": errors(shape),
        "used": used(shape, batch),
    }


def line(result: dict) -> str:
    """Return the result of one shape as a line of text."""
    times = "  ".join(f"{name} {Timing(**timing)}" for name, timing in result["milliseconds"].items())
    return (
        f"{result['shape']:<26} x{result['in_a_family']:<2} ms [quartiles]: {times}"
        f"  | {' '.join(map(str, result['gigaflops'].values()))} GFLOP/s, {result['used']}"
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
