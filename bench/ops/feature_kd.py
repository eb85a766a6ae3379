"""The intermediate loss of one block with its gradients, against naive PyTorch and torch.compile, on a GPU or a CPU.

    python -m bench.ops.feature_kd [--json FILE] [--blocks 64x51x38x25x12@8 ...] [--dtype bfloat16 ...] [--batch 128]
        [--device cpu] [--threads 1] [--seconds 2]

On a GPU, bandwidths count the pseudo teacher's map and the maps of the other students, read once, and the gradients of
the students' maps, written once. Adapters are about a hundredth of that and are not counted. A sample is one call
between two CUDA events; the second-level cache is flushed before it, outside the timing. On a CPU, variants are called
in turn, and "rows" is the reference backend.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from oekd_fast import feature_kd_loss, feature_kd_value_and_grad
from oekd_fast.common.machine import machine
from oekd_fast.runs.host_memory import keep_freed_memory

from .. import gpu_timing, result_file
from ..measure import Timing, interleave
from .variants import DTYPES, compiled, name_of, with_backward

# CIFAR-ResNet (three blocks), DenseNet-BC-12, ResNet-18 (two blocks).
BLOCKS = (
    "16x12x9x6x3@32", "32x25x19x12x6@16", "64x51x38x25x12@8", "150x114x90x54x30@8", "128x102x76x51x25@28",
    "512x409x307x204x102@7",
)  # fmt: skip
BATCH = 128
VARIANTS = ("eager", "compiled", "value_and_grad", "differentiable")
FLUSH_BYTES = 256 * 2**20  # larger than the second-level cache of any GPU
CALLS_BEFORE = 5
CPU_BLOCKS = BLOCKS[:3]


@dataclass(frozen=True)
class Block:
    """Maps of one block.

    Attributes:
        channels: Channels of the pseudo teacher's map, then of each student's map.
        side: Height and width of the maps, in pixels.
    """

    channels: tuple[int, ...]
    side: int

    @classmethod
    def parse(cls, text: str) -> Block:
        """Read "64x51x38@8": channels, then the side."""
        channels, side = text.split("@")
        return cls(tuple(map(int, channels.split("x"))), int(side))

    def bytes_moved(self, batch: int, dtype: torch.dtype) -> int:
        """Return the bytes of all maps and of the gradients of the students' maps."""
        teacher, *students = self.channels
        return dtype.itemsize * batch * self.side**2 * (teacher + 2 * sum(students))


def naive_loss(maps: list[Tensor], teacher: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """The loss as one would write it in PyTorch.

    Args:
        maps: Students' maps [B, C_j, H, W].
        teacher: The pseudo teacher's map [B, C, H, W].
        weights: Adapters [C, C_j] in fp32.
        biases: Adapters' biases [C] in fp32.
    """
    target = teacher.detach()
    return sum(
        F.mse_loss(F.conv2d(x, w.to(x.dtype)[:, :, None, None], b.to(x.dtype)).float(), target.float())
        for x, w, b in zip(maps, weights, biases, strict=True)
    )


def variants(
    block: Block,
    batch: int,
    dtype: torch.dtype,
    channels_last: bool,
    device: str = "cuda",
    compiled: Callable[[Callable], Callable] = compiled,
) -> dict[str, Callable[[], object]]:
    """Return the calls by name, in the order of `VARIANTS`.

    Each computes the loss and the gradients of all students' maps and adapters; adapters are in fp32. `compiled`
    compiles a function.
    """
    return problem(block, batch, dtype, channels_last, device, compiled)[0]


def problem(
    block: Block,
    batch: int,
    dtype: torch.dtype,
    channels_last: bool,
    device: str,
    compiled: Callable[[Callable], Callable] = compiled,
) -> tuple[dict[str, Callable[[], object]], tuple]:
    """Return the calls as `variants` does, and the arguments of the loss."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    width, *narrower = block.channels
    teacher, *maps = (
        normal(batch, c, block.side, block.side).to(dtype).contiguous(memory_format=memory_format)
        for c in block.channels
    )
    weights = [normal(width, c) / c**0.5 for c in narrower]
    biases = [normal(width) for _ in narrower]
    leaves = [*maps, *weights, *biases]
    for leaf in leaves:
        leaf.requires_grad_()
    compiled_loss = compiled(naive_loss)
    calls = (
        with_backward(lambda: naive_loss(maps, teacher, weights, biases), leaves),
        with_backward(lambda: compiled_loss(maps, teacher, weights, biases), leaves),
        lambda: feature_kd_value_and_grad(maps, teacher, weights, biases),
        with_backward(lambda: feature_kd_loss(maps, teacher, weights, biases), leaves),
    )
    return dict(zip(VARIANTS, calls, strict=True)), (maps, teacher, weights, biases)


def time_on_gpu(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Time calls in turn on the device, with an empty second-level cache before each."""
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
    return {name: Timing.of(values) for name, values in samples.items()}


def measure(text: str, batch: int, dtype: torch.dtype, channels_last: bool, rounds: int) -> dict:
    """Time all variants of a block, launched one by one and as a CUDA graph."""
    calls = variants(Block.parse(text), batch, dtype, channels_last)
    graphs = {name: gpu_timing.captured(call, 1) for name, call in calls.items()}
    return result(text, batch, dtype, channels_last, time_on_gpu(calls, rounds), time_on_gpu(graphs, rounds))


def measure_on_cpu(text: str, batch: int, dtype: torch.dtype, channels_last: bool, seconds: float) -> dict:
    """Time all variants of a block in turn for about `seconds`, and the reference backend as "rows"."""
    calls, arguments = problem(Block.parse(text), batch, dtype, channels_last, "cpu")
    calls["rows"] = lambda: feature_kd_value_and_grad(*arguments, backend="reference")
    timings = interleave(calls, seconds)
    ours = timings["value_and_grad"].median
    return {
        "block": text,
        "batch": batch,
        "dtype": name_of(dtype),
        "channels_last": channels_last,
        "milliseconds": {name: timing.as_dict() for name, timing in timings.items()},
        "speedup": {name: round(timings[name].median / ours, 2) for name in ("eager", "compiled", "rows")},
    }


def result(
    text: str,
    batch: int,
    dtype: torch.dtype,
    channels_last: bool,
    timings: dict[str, Timing],
    captured: dict[str, Timing],
) -> dict:
    """Return what is written to the file for a block, from its times launched one by one and as a graph."""
    size = Block.parse(text).bytes_moved(batch, dtype)
    return {
        "block": text,
        "batch": batch,
        "dtype": name_of(dtype),
        "channels_last": channels_last,
        "bytes": size,
        "milliseconds": {name: timing.as_dict() for name, timing in timings.items()},
        "milliseconds_in_graph": {name: timing.as_dict() for name, timing in captured.items()},
        "gigabytes_per_second_in_graph": {name: round(size / t.median / 1e6, 1) for name, t in captured.items()},
    }


def line(result: dict) -> str:
    """Return the result of one block as a line of text."""

    def figure(name: str) -> str:
        eager, captured = (result[form][name]["median"] for form in ("milliseconds", "milliseconds_in_graph"))
        return f"{name} {eager:.4f} / {captured:.4f} ms {result['gigabytes_per_second_in_graph'][name]:.0f} GB/s"

    figures = "  ".join(map(figure, result["milliseconds"]))
    return f"{_kind(result)}, eager / in a graph: {figures}"


def cpu_line(result: dict) -> str:
    """Return the result of one block on a CPU as a line of text."""
    figures = "  ".join(f"{name} {time['median']:.2f}" for name, time in result["milliseconds"].items())
    return f"{_kind(result)}: {figures} ms"


def _kind(result: dict) -> str:
    layout = "channels_last" if result["channels_last"] else "NCHW"
    return f"{result['block']} B={result['batch']} {result['dtype']} {layout}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument(
        "--blocks", nargs="+", metavar="C0xC1x...@SIDE",
        help="channels of the pseudo teacher and of each student, and height = width of the maps "
        f"(default: {' '.join(BLOCKS)}, on a CPU the first {len(CPU_BLOCKS)})",
    )  # fmt: skip
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="default: bfloat16 float32, on a CPU float32")
    parser.add_argument("--batch", type=int, default=BATCH, help="images in a batch")
    parser.add_argument("--rounds", type=int, default=50, help="samples of each variant on a GPU")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--threads", type=int, default=1, help="threads on a CPU")
    parser.add_argument("--seconds", type=float, default=2.0, help="duration of the samples of a block on a CPU")
    arguments = parser.parse_args()
    on_cpu = arguments.device == "cpu"
    if on_cpu:
        torch.set_num_threads(arguments.threads)
        keep_freed_memory()  # as the trainer does
    elif not torch.cuda.is_available():
        parser.exit(
            2, "bench.ops.feature_kd: expected a CUDA device, torch finds none; --device cpu measures on the CPU\n"
        )

    where = machine()
    print(result_file.describe(where), flush=True)
    results = []
    for dtype in arguments.dtype or (["float32"] if on_cpu else ["bfloat16", "float32"]):
        for block in arguments.blocks or (CPU_BLOCKS if on_cpu else BLOCKS):
            for channels_last in (True, False):
                case = block, arguments.batch, getattr(torch, dtype), channels_last
                if on_cpu:
                    results.append(measure_on_cpu(*case, arguments.seconds))
                else:
                    results.append(measure(*case, arguments.rounds))
                print((cpu_line if on_cpu else line)(results[-1]), flush=True)
    if arguments.json:
        what = "feature_kd loss and gradients of one block"
        result_file.write(arguments.json, result_file.report(what, where, results))


if __name__ == "__main__":
    main()
