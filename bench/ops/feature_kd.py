"""The intermediate loss of one block with its gradients, against naive PyTorch and torch.compile, on a GPU.

    python -m bench.ops.feature_kd [--json FILE] [--blocks 64x51x38x25x12@8 ...] [--dtype bfloat16 ...] [--batch 128]

Bytes model: the pseudo teacher's map and n students' maps read once, n gradients written once. Adapters, a hundredth of
that, are not counted. Each sample is one call between two CUDA events, variants in turn, after an untimed flush of L2.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from oekd_fast import feature_kd_loss, feature_kd_value_and_grad

from ..gpu import timing as gpu_timing
from ..measure import Timing, machine

# Channels of the pseudo teacher and the students, and the side of the maps: CIFAR-ResNet, DenseNet-BC-12, ResNet-18.
BLOCKS = (
    "16x12x9x6x3@32", "32x25x19x12x6@16", "64x51x38x25x12@8", "150x114x90x54x30@8", "128x102x76x51x25@28",
    "512x409x307x204x102@7",
)  # fmt: skip
FLUSH_BYTES = 256 * 2**20  # above any L2
CALLS_BEFORE = 5


def naive_loss(maps: list[Tensor], teacher: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """The loss as one would write it."""
    target = teacher.detach()
    return sum(
        F.mse_loss(F.conv2d(x, w.to(x.dtype)[:, :, None, None], b.to(x.dtype)).float(), target.float())
        for x, w, b in zip(maps, weights, biases, strict=True)
    )


def variants(
    channels: list[int], side: int, batch: int, dtype: torch.dtype, channels_last: bool, device: str = "cuda"
) -> dict[str, Callable[[], object]]:
    """Each call makes the loss and the gradients of all students' maps and adapters; weights are fp32."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    teacher, *maps = (normal(batch, c, side, side).to(dtype).contiguous(memory_format=memory_format) for c in channels)
    weights = [normal(channels[0], c) / c**0.5 for c in channels[1:]]
    biases = [normal(channels[0]) for _ in channels[1:]]
    leaves = [*maps, *weights, *biases]
    for leaf in leaves:
        leaf.requires_grad_()
    compiled_loss = torch.compile(naive_loss, dynamic=False)

    def with_backward(loss: Callable[..., Tensor]) -> Callable[[], None]:
        def step() -> None:
            for leaf in leaves:
                leaf.grad = None
            loss(maps, teacher, weights, biases).backward()

        return step

    return {
        "eager": with_backward(naive_loss),
        "compiled": with_backward(compiled_loss),
        "value_and_grad": lambda: feature_kd_value_and_grad(maps, teacher, weights, biases),
        "differentiable": with_backward(feature_kd_loss),
    }


def time_on_gpu(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Milliseconds of each call, with a cold L2."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(CALLS_BEFORE):
            call()
    for _ in range(rounds):
        for name, call in calls.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            start.record()
            call()
            end.record()
            end.synchronize()
            samples[name].append(start.elapsed_time(end))
    timings = {}
    for name, values in samples.items():
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        timings[name] = Timing(median, lower, upper, len(values))
    return timings


def measure(block: str, batch: int, dtype: torch.dtype, channels_last: bool, rounds: int) -> dict:
    widths, side = block.split("@")
    channels = [int(width) for width in widths.split("x")]
    calls = variants(channels, int(side), batch, dtype, channels_last)
    graphs = {name: gpu_timing.captured(call, 1) for name, call in calls.items()}
    size = dtype.itemsize * batch * int(side) ** 2 * (channels[0] + 2 * sum(channels[1:]))
    timings, captured = time_on_gpu(calls, rounds), time_on_gpu(graphs, rounds)
    return {
        "block": block,
        "batch": batch,
        "dtype": str(dtype).removeprefix("torch."),
        "channels_last": channels_last,
        "bytes": size,
        "milliseconds": {name: timing.as_dict() for name, timing in timings.items()},
        "milliseconds_in_graph": {name: timing.as_dict() for name, timing in captured.items()},
        "gigabytes_per_second_in_graph": {name: round(size / t.median / 1e6, 1) for name, t in captured.items()},
    }


def line(result: dict) -> str:
    def figure(name: str) -> str:
        eager, captured = (result[form][name]["median"] for form in ("milliseconds", "milliseconds_in_graph"))
        return f"{name} {eager:.4f} / {captured:.4f} ms {result['gigabytes_per_second_in_graph'][name]:.0f} GB/s"

    figures = "  ".join(map(figure, result["milliseconds"]))
    layout = "channels_last" if result["channels_last"] else "NCHW"
    return f"{result['block']} B={result['batch']} {result['dtype']} {layout}, eager / in a graph: {figures}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--blocks", nargs="+", default=list(BLOCKS), metavar="C0xC1x...@SIDE")
    parser.add_argument(
        "--dtype", nargs="+", default=["bfloat16", "float32"], choices=["float32", "bfloat16", "float16"]
    )
    parser.add_argument("--batch", type=int, default=128, help="images")
    parser.add_argument("--rounds", type=int, default=50, help="samples of each variant")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "bench.ops.feature_kd: needs a CUDA device, torch sees none\n")

    where = machine() | {"gpu": torch.cuda.get_device_name()}
    print(", ".join(f"{name} {value}" for name, value in where.items()), flush=True)
    results = []
    for dtype in arguments.dtype:
        for block in arguments.blocks:
            for channels_last in (True, False):
                results.append(measure(block, arguments.batch, getattr(torch, dtype), channels_last, arguments.rounds))
                print(line(results[-1]), flush=True)
    if arguments.json:
        report = {"what": "feature_kd loss and gradients of one block", "machine": where, "results": results}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
