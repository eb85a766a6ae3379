"""Predictions of a family in evaluation mode by our engine's layers, PyTorch's and torch.compile, on a CPU.

python -m bench.step.evaluation [--json FILE] [--model resnet20] [--batch-size 512] [--threads 2] [--seconds 60]
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from oekd_fast.common.machine import machine
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.family.ensemble import StudentEnsemble
from oekd_fast.layers.fast_module import use_direct_convs, use_fused_norms, use_winograd_convs
from oekd_fast.parallel.executor import make_executor
from oekd_fast.runs.host_memory import keep_freed_memory
from oekd_fast.training.backward import forward_side_by_side
from oekd_fast.training.prepare import prepare_family

from .. import result_file
from ..measure import interleave
from .problem import StepProblem


def variants(problem: StepProblem) -> dict[str, Callable[[], Tensor]]:
    """Return calls that predict a batch with the same weights; each returns the logits of all students."""
    layers = problem.family(None).to(memory_format=torch.channels_last)
    config = TrainConfig(model=problem.model, num_students=problem.num_students)
    family = prepare_family(copy.deepcopy(layers), config).eval()
    layers.eval()
    for use in (use_fused_norms, use_direct_convs, use_winograd_convs):
        use(layers, False)
    images = torch.randn(problem.batch_size, 3, problem.image_size, problem.image_size)
    images = images.contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(layers, dynamic=False)
    executor = make_executor("auto", len(family.members), torch.device("cpu"), members=family.members)

    def ours(of: StudentEnsemble) -> Callable[[], Tensor]:
        return lambda: torch.cat(forward_side_by_side(of, images, executor)[0].logits)

    return {
        "ours": ours(family),
        "PyTorch's layers, students side by side": ours(layers),
        "eager": lambda: torch.cat(layers(images).logits),
        "torch.compile": lambda: torch.cat(compiled(images).logits),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=60.0, help="duration of the rounds")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as the trainer does
    problem = StepProblem(model=arguments.model, batch_size=arguments.batch_size)
    where = machine()
    print(result_file.describe(where), flush=True)
    with torch.no_grad():
        calls = variants(problem)
        exact = calls["eager"]()
        errors = {name: ((call() - exact).norm() / exact.norm()).item() for name, call in calls.items()}
        timings = interleave(calls, arguments.seconds)
    for name, timing in timings.items():
        print(f"{name:<40} {timing} ms, relative difference from eager {errors[name]:.1e}")
    if arguments.json:
        result = {
            "problem": asdict(problem),
            "milliseconds": {name: timing.as_dict() for name, timing in timings.items()},
            "difference_from_eager": errors,
        }
        what = "predictions of a family in evaluation mode, interleaved"
        result_file.write(arguments.json, result_file.report(what, where, [result]))


if __name__ == "__main__":
    main()
