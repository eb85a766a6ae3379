"""Our training step with Winograd's and direct convolutions, and with PyTorch's in their place, on a CPU.

    python -m bench.step.direct_convs [--json FILE] [--model resnet20] [--batch-size 128] [--seconds 60]

Each form stays in the package only where it shortens this step by at least 5 %.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from oekd_fast.common.machine import machine
from oekd_fast.layers.fast_module import use_direct_convs, use_winograd_convs
from oekd_fast.runs.host_memory import keep_freed_memory

from .. import result_file
from ..measure import Timing, interleave
from .ours import OurStep
from .problem import StepProblem


def variants(problem: StepProblem) -> dict[str, OurStep]:
    """Return the steps, which start from the same weights.

    "winograd" uses both forms, as the trainer does; "direct" uses direct convolutions alone, and "pytorch" neither.
    """
    steps = {name: OurStep(problem) for name in ("winograd", "direct", "pytorch")}
    for name in ("direct", "pytorch"):
        use_winograd_convs(steps[name].family, False)
    use_direct_convs(steps["pytorch"].family, False)
    return steps


def measure(problem: StepProblem, seconds: float) -> dict[str, Timing]:
    """Time all variants in turn for about `seconds`."""
    calls = {name: variant.step for name, variant in variants(problem).items()}
    return interleave(calls, seconds, calls_before=5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=60.0, help="duration of the rounds")
    arguments = parser.parse_args()

    problem = StepProblem(model=arguments.model, batch_size=arguments.batch_size, batches=16)
    keep_freed_memory()  # as the trainer does
    where = machine()
    print(result_file.describe(where), flush=True)
    timings = measure(problem, arguments.seconds)
    for name, timing in timings.items():
        print(f"{name:<8} {timing} ms, {timing.samples} rounds")
    for name, without in (("winograd", "direct"), ("direct", "pytorch")):
        saved = 1 - timings[name].median / timings[without].median
        print(f"{name} saves {100 * saved:.1f} % of the step {without}")
    if arguments.json:
        what = "one training step with Winograd's, direct and PyTorch's convolutions, interleaved"
        result = {
            "problem": asdict(problem),
            "milliseconds": {name: timing.as_dict() for name, timing in timings.items()},
        }
        result_file.write(arguments.json, result_file.report(what, where, [result]))


if __name__ == "__main__":
    main()
