"""The ensemble distillation loss with its gradients, against naive PyTorch and torch.compile, on a CPU.

    python -m bench.ops.ensemble_kd [--json FILE] [--sizes 1024x1000 ...] [--dtype float32] [--seconds 10]

Bandwidths count the logits of all students, read once, and their gradients, written once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad
from oekd_fast.common.machine import machine

from .. import result_file
from ..measure import Timing, interleave
from .variants import DTYPES, compiled, name_of, with_backward

STUDENTS = 5
TEMPERATURE, CE_WEIGHT, KD_WEIGHT = 2.0, 0.7, 0.15
SIZES = ((128, 100), (8192, 100), (1024, 1000), (64, 32000))  # (B, C)
VARIANTS = ("eager", "compiled", "value_and_grad", "differentiable")


def naive_loss(logits: list[Tensor], target: Tensor) -> Tensor:
    """The loss as one would write it in PyTorch.

    Args:
        logits: S tensors [B, C].
        target: int64 [B].
    """
    ensemble = torch.stack(logits).mean(dim=0).detach()
    teacher = F.softmax(ensemble / TEMPERATURE, dim=1)
    loss = 0.0
    for student in logits:
        kl = F.kl_div(F.log_softmax(student / TEMPERATURE, dim=1), teacher, reduction="batchmean")
        loss = loss + CE_WEIGHT * F.cross_entropy(student, target) + KD_WEIGHT * TEMPERATURE**2 * kl
    return loss


def variants(rows: int, classes: int, dtype: torch.dtype = torch.float32) -> dict[str, Callable[[], object]]:
    """Return the calls by name, in the order of `VARIANTS`; each computes the loss and the gradients of all students.

    "value_and_grad" writes into buffers that are kept, "differentiable" is the loss with `.backward()`.
    """
    generator = torch.Generator().manual_seed(0)
    logits = [(4 * torch.randn(rows, classes, generator=generator)).to(dtype).requires_grad_() for _ in range(STUDENTS)]
    target = torch.randint(classes, (rows,), generator=generator)
    out = [torch.empty_like(z, requires_grad=False) for z in logits]
    compiled_loss = compiled(naive_loss)
    calls = (
        with_backward(lambda: naive_loss(logits, target), logits),
        with_backward(lambda: compiled_loss(logits, target), logits),
        lambda: ensemble_kd_value_and_grad(logits, target, out=out),
        with_backward(lambda: ensemble_kd_loss(logits, target).loss, logits),
    )
    return dict(zip(VARIANTS, calls, strict=True))


def bytes_moved(rows: int, classes: int, dtype: torch.dtype) -> int:
    """Return the bytes of one pass over the logits and one over their gradients."""
    return 2 * STUDENTS * rows * classes * dtype.itemsize


def measure(rows: int, classes: int, dtype: torch.dtype, seconds: float) -> dict:
    """Time all variants of a size in turn for about `seconds`."""
    timings = interleave(variants(rows, classes, dtype), seconds)
    result = {
        "rows": rows,
        "classes": classes,
        "dtype": name_of(dtype),
        "milliseconds": {name: timing.as_dict() for name, timing in timings.items()},
        "gigabytes_per_second": round(bytes_moved(rows, classes, dtype) / timings["value_and_grad"].median / 1e6, 2),
    }
    for ours in ("value_and_grad", "differentiable"):
        result[f"{ours}_speedup"] = {
            theirs: round(timings[theirs].median / timings[ours].median, 2) for theirs in ("eager", "compiled")
        }
    return result


def line(result: dict) -> str:
    """Return the result of one size as a line of text."""

    def speedup(ours: str) -> str:
        return " and ".join(f"{factor}x {theirs}" for theirs, factor in result[f"{ours}_speedup"].items())

    times = "  ".join(f"{name} {Timing(**timing)}" for name, timing in result["milliseconds"].items())
    return (
        f"B={result['rows']:<5} C={result['classes']:<6} {result['dtype']:<8} ms [quartiles]: {times}"
        f"  | value_and_grad {speedup('value_and_grad')}, {result['gigabytes_per_second']} GB/s"
        f"; differentiable {speedup('differentiable')}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    sizes = [f"{rows}x{classes}" for rows, classes in SIZES]
    parser.add_argument("--sizes", nargs="+", default=sizes, metavar="BxC", help="rows x classes")
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=DTYPES)
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of the measurement of a size")
    arguments = parser.parse_args()

    where = machine()
    print(result_file.describe(where), flush=True)
    results = []
    for dtype in arguments.dtype:
        for size in arguments.sizes:
            rows, classes = map(int, size.split("x"))
            results.append(measure(rows, classes, getattr(torch, dtype), arguments.seconds))
            print(line(results[-1]), flush=True)
    if arguments.json:
        what = "ensemble_kd loss and gradients, S = 5, T = 2"
        result_file.write(arguments.json, result_file.report(what, where, results))


if __name__ == "__main__":
    main()
