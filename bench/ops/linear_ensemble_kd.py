"""The loss of classifiers in chunks of rows, against whole logits and linear_cross_entropy, on a CPU.

    python -m bench.ops.linear_ensemble_kd [--json FILE] [--rows 4096] [--classes 32000] [--size 512] [--seconds 120]

Each call computes the loss and the gradients of hidden states and classifier weights of two students. "linear cross
entropy" is torch.nn.functional.linear_cross_entropy of each student, which has no distillation term. Memory is the
growth of the peak resident set of a process that makes one call.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from oekd_fast import ensemble_kd_loss, linear_ensemble_kd_loss
from oekd_fast.common.machine import machine

from .. import result_file
from ..measure import Timing, interleave
from .ensemble_kd import naive_loss
from .variants import with_backward

STUDENTS = 2
VARIANTS = ("whole logits, eager", "whole logits", "chunks", "linear cross entropy")


def variants(rows: int, classes: int, size: int) -> dict[str, Callable[[], object]]:
    """Return the calls by name, in the order of `VARIANTS`."""
    generator = torch.Generator().manual_seed(0)
    hidden = [torch.randn(rows, size, generator=generator).requires_grad_() for _ in range(STUDENTS)]
    weights = [(torch.randn(classes, size, generator=generator) * size**-0.5).requires_grad_() for _ in range(STUDENTS)]
    target = torch.randint(classes, (rows,), generator=generator)
    leaves = [*hidden, *weights]

    def logits():
        return [F.linear(h, w) for h, w in zip(hidden, weights, strict=True)]

    def linear_cross_entropy():
        return sum(F.linear_cross_entropy(h, w, target) for h, w in zip(hidden, weights, strict=True))

    calls = (
        with_backward(lambda: naive_loss(logits(), target), leaves),
        with_backward(lambda: ensemble_kd_loss(logits(), target).loss, leaves),
        with_backward(lambda: linear_ensemble_kd_loss(hidden, weights, target).loss, leaves),
        with_backward(linear_cross_entropy, leaves),
    )
    return dict(zip(VARIANTS, calls, strict=True))


def peak_megabytes() -> float:
    """Return the peak resident set of this process in MB."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024 / 1e6


def growth(name: str, rows: int, classes: int, size: int) -> float:
    """Measure the growth of the peak resident set by one call, in MB, in a process of its own."""
    code = (
        "from bench.ops.linear_ensemble_kd import peak_megabytes, variants\n"
        f"list(variants(8, 100, 8).values())[{VARIANTS.index(name)}]()\n"
        f"call = variants({rows}, {classes}, {size})[{name!r}]\n"
        "before = peak_megabytes()\ncall()\nprint(peak_megabytes() - before)"
    )
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--classes", type=int, default=32000)
    parser.add_argument("--size", type=int, default=512, help="size of the hidden states of both students")
    parser.add_argument("--seconds", type=float, default=120.0, help="duration of the measurement")
    arguments = parser.parse_args()

    where = machine()
    print(result_file.describe(where), flush=True)
    shape = arguments.rows, arguments.classes, arguments.size
    memory = {name: round(growth(name, *shape), 1) for name in VARIANTS}
    timings = interleave(variants(*shape), arguments.seconds, calls_before=1)
    whole = timings["whole logits"].median
    result = {
        "rows": arguments.rows,
        "classes": arguments.classes,
        "size": arguments.size,
        "students": STUDENTS,
        "milliseconds": {name: timing.as_dict() for name, timing in timings.items()},
        "peak_growth_megabytes": memory,
        "gradients_megabytes": round(STUDENTS * (arguments.rows + arguments.classes) * arguments.size * 4 / 1e6, 1),
        "time_of_chunks_over_whole_logits": round(timings["chunks"].median / whole, 3),
    }
    for name, timing in timings.items():
        print(f"{name:<22} ms {Timing(**timing.as_dict())}  peak + {memory[name]} MB", flush=True)
    if arguments.json:
        what = "linear_ensemble_kd loss and gradients, S = 2, fp32"
        result_file.write(arguments.json, result_file.report(what, where, [result]))


if __name__ == "__main__":
    main()
