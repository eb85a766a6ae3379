"""Our training step in fp32 and in bf16, and in bf16 with PyTorch's BatchNorm in place of the fused one, on a CPU.

    python -m bench.step.precisions [--json FILE] [--model resnet20] [--batch-size 128] [--seconds 60]

`--precision auto` chooses bf16 for processors on which this step is faster in bf16.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

import torch

from oekd_fast.common.machine import machine
from oekd_fast.layers.fast_module import use_fused_norms
from oekd_fast.runs.host_memory import keep_freed_memory
from oekd_fast.training.numerics import automatic_precision

from .. import result_file
from ..measure import Timing, interleave
from .ours import OurStep
from .problem import StepProblem


def variants(problem: StepProblem) -> dict[str, OurStep]:
    """Return the steps by name: of the family, in both precisions and without fused norms, and of the largest student.

    All start from the same weights.
    """
    low = replace(problem, precision="bf16")
    steps = {
        "fp32": OurStep(problem),
        "bf16": OurStep(low),
        "bf16, PyTorch's norms": OurStep(low),
        "largest alone, fp32": OurStep(problem, members=(0,)),
        "largest alone, bf16": OurStep(low, members=(0,)),
    }
    use_fused_norms(steps["bf16, PyTorch's norms"].family, False)
    return steps


def measure(problem: StepProblem, seconds: float) -> dict[str, Timing]:
    """Time all variants in turn for about `seconds`."""
    return interleave({name: step.step for name, step in variants(problem).items()}, seconds, calls_before=3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=60.0, help="duration of the rounds")
    arguments = parser.parse_args()

    keep_freed_memory()  # as the trainer does
    where, (precision, why) = machine(), automatic_precision(torch.device("cpu"))
    print(result_file.describe(where), flush=True)
    problem = StepProblem(model=arguments.model, batch_size=arguments.batch_size, batches=16)
    timings = measure(problem, arguments.seconds)
    for name, timing in timings.items():
        print(f"{name:<22} {timing} ms, {timings['fp32'].median / timing.median:.2f}x as fast as the family in fp32")
    print(f"--precision auto: {precision}, since {why}")
    if arguments.json:
        result = {
            "problem": asdict(problem),
            "automatic_precision": precision,
            "milliseconds": {name: timing.as_dict() for name, timing in timings.items()},
        }
        result_file.write(
            arguments.json, result_file.report("one training step in fp32 and bf16, interleaved", where, [result])
        )


if __name__ == "__main__":
    main()
