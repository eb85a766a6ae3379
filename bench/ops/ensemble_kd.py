"""The ensemble distillation loss with its gradients, against naive PyTorch and torch.compile, on a CPU.

    python -m bench.ops.ensemble_kd [--json FILE] [--sizes 1024x1000 ...] [--dtype float32] [--seconds 10]

Bytes model: S logits read once, S gradients written once.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from oekd_fast import ensemble_kd_loss, ensemble_kd_value_and_grad

from ..measure import Timing, interleave, machine

STUDENTS = 5
TEMPERATURE, CE_WEIGHT, KD_WEIGHT = 2.0, 0.7, 0.15
SIZES = ((128, 100), (1024, 1000), (64, 32000))  # (B, C)


def naive_loss(logits: list[Tensor], target: Tensor) -> Tensor:
    """The loss as one would write it."""
    ensemble = torch.stack(logits).mean(dim=0).detach()
    teacher = F.softmax(ensemble / TEMPERATURE, dim=1)
    loss = 0.0
    for student in logits:
        kl = F.kl_div(F.log_softmax(student / TEMPERATURE, dim=1), teacher, reduction="batchmean")
        loss = loss + CE_WEIGHT * F.cross_entropy(student, target) + KD_WEIGHT * TEMPERATURE**2 * kl
    return loss


def variants(rows: int, classes: int, dtype: torch.dtype = torch.float32) -> dict[str, Callable[[], object]]:
    """Each call makes the loss and the gradients of all students."""
    generator = torch.Generator().manual_seed(0)
    logits = [(4 * torch.randn(rows, classes, generator=generator)).to(dtype).requires_grad_() for _ in range(STUDENTS)]
    target = torch.randint(classes, (rows,), generator=generator)
    out = [torch.empty_like(z, requires_grad=False) for z in logits]
    compiled_loss = torch.compile(naive_loss, dynamic=False)

    def with_backward(loss: Callable[[], Tensor]) -> Callable[[], None]:
        def step() -> None:
            for z in logits:
                z.grad = None
            loss().backward()

        return step

    return {
        "eager": with_backward(lambda: naive_loss(logits, target)),
        "compiled": with_backward(lambda: compiled_loss(logits, target)),
        "value_and_grad": lambda: ensemble_kd_value_and_grad(logits, target, out=out),
        "differentiable": with_backward(lambda: ensemble_kd_loss(logits, target).loss),
    }


def measure(rows: int, classes: int, dtype: torch.dtype, seconds: float) -> dict:
    timings = interleave(variants(rows, classes, dtype), seconds)
    size = 2 * STUDENTS * rows * classes * dtype.itemsize
    result = {
        "rows": rows,
        "classes": classes,
        "dtype": str(dtype).removeprefix("torch."),
        "milliseconds": {name: timing.as_dict() for name, timing in timings.items()},
        "gigabytes_per_second": round(size / timings["value_and_grad"].median / 1e6, 2),
    }
    for ours in ("value_and_grad", "differentiable"):
        result[f"{ours}_speedup"] = {
            theirs: round(timings[theirs].median / timings[ours].median, 2) for theirs in ("eager", "compiled")
        }
    return result


def line(result: dict) -> str:
    def ms(name: str) -> str:
        t = Timing(**result["milliseconds"][name])
        return f"{t.median:8.3f} [{t.lower:.3f}, {t.upper:.3f}]"

    def speedup(ours: str) -> str:
        return " and ".join(f"{factor}x {theirs}" for theirs, factor in result[f"{ours}_speedup"].items())

    return (
        f"B={result['rows']:<5} C={result['classes']:<6} {result['dtype']:<8} ms [quartiles]: "
        + "  ".join(f"{name} {ms(name)}" for name in result["milliseconds"])
        + f"  | value_and_grad {speedup('value_and_grad')}, {result['gigabytes_per_second']} GB/s"
        + f"; differentiable {speedup('differentiable')}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--sizes", nargs="+", default=[f"{b}x{c}" for b, c in SIZES], metavar="BxC")
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--seconds", type=float, default=10.0, help="of measuring, a size")
    arguments = parser.parse_args()

    where = machine()
    print(", ".join(f"{name} {value}" for name, value in where.items()), flush=True)
    results = []
    for dtype in arguments.dtype:
        for size in arguments.sizes:
            rows, classes = map(int, size.split("x"))
            results.append(measure(rows, classes, getattr(torch, dtype), arguments.seconds))
            print(line(results[-1]), flush=True)
    if arguments.json:
        report = {
            "what": "ensemble_kd loss and gradients, S = 5, T = 2",
            "machine": where,
            "results": results,
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
