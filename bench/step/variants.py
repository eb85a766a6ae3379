"""The ways to do the training step that are measured, by the names that the results have."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .eager import EagerStep
from .ours import AloneInTurn, OurStep
from .problem import Step, StepProblem
from .published import PublishedStep

NO_GRAPHS = "CUDA alone has graphs to capture a step in"
OTHER_TRAINING = "students alone: no family to compare"

# Those of a student alone are captured where there are graphs: our engine as it is used there. The captured family
# insists on its streams: without the extension "auto" would quietly be one stream.
VARIANTS: dict[str, Callable[[StepProblem], Step | AloneInTurn]] = {
    "published": PublishedStep,
    "eager": EagerStep,
    "eager_nchw": lambda problem: EagerStep(problem, channels_last=False),
    "compiled": lambda problem: EagerStep(problem, compiled=True),
    "ours_eager": OurStep,
    "ours_captured": lambda problem: OurStep(problem, capture=True, executor="parallel"),
    "ours_one_stream": lambda problem: OurStep(problem, capture=True, executor="sequential"),
    "largest_alone": lambda problem: OurStep(problem, (0,), capture=on_cuda(problem)),
    "sequential": lambda problem: AloneInTurn(problem, capture=on_cuda(problem)),
}
CAPTURED = ("ours_captured", "ours_one_stream")
ALONE = ("largest_alone", "sequential")


def on_cuda(problem: StepProblem) -> bool:
    return problem.device.startswith("cuda")


def absent(name: str, problem: StepProblem) -> str | None:
    """Why there is no such variant of the problem; None where there is."""
    return NO_GRAPHS if name in CAPTURED and not on_cuda(problem) else None


def build(name: str, problem: StepProblem) -> Step | AloneInTurn:
    """The variant after its first step, which for some compiles or captures.

    Raises:
        RuntimeError: a step that should be captured is not; and what the variant raises.
    """
    torch.backends.cudnn.benchmark = True  # for all alike: shapes never change
    variant = VARIANTS[name](problem)
    variant.step()
    if name in CAPTURED and variant.not_captured is not None:
        raise RuntimeError(f"not captured: {variant.not_captured}")
    return variant
