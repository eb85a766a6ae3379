"""The variants of the training step that are measured, by their names in the results."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from oekd_fast.training.graph_capture import Recorder

from .eager import EagerStep
from .ours import AloneInTurn, OurStep
from .problem import Step, StepProblem
from .published import PublishedStep

NO_GRAPHS = "only CUDA has graphs that capture a step"
OTHER_TRAINING = "trains students alone, which no family can be compared with"

# Students alone are captured on CUDA, as our engine does by default. The captured family names its executor: without
# the compiled executor, "auto" would silently use one stream.
CAPTURED: dict[str, Callable[..., OurStep]] = {
    "ours_captured": partial(OurStep, capture=True, executor="parallel"),
    "ours_one_stream": partial(OurStep, capture=True, executor="sequential"),
    "ours_unpadded": partial(OurStep, capture=True, executor="parallel", pad_channels="off"),
    "ours_blocks": partial(OurStep, capture=True, executor="parallel", compile_blocks=True),
}
VARIANTS: dict[str, Callable[[StepProblem], Step | AloneInTurn]] = {
    "published": PublishedStep,
    "eager": EagerStep,
    "eager_nchw": lambda problem: EagerStep(problem, channels_last=False),
    "compiled": lambda problem: EagerStep(problem, compiled=True),
    "ours_eager": OurStep,
    **CAPTURED,
    "largest_alone": lambda problem: OurStep(problem, (0,), capture=on_cuda(problem)),
    "sequential": lambda problem: AloneInTurn(problem, capture=on_cuda(problem)),
}
ALONE = ("largest_alone", "sequential")


def on_cuda(problem: StepProblem) -> bool:
    return problem.device.startswith("cuda")


def absent(name: str, problem: StepProblem) -> str | None:
    """Return why the problem does not have this variant, or None if it does."""
    return NO_GRAPHS if name in CAPTURED and not on_cuda(problem) else None


def build(name: str, problem: StepProblem, recorder: Recorder | None = None) -> Step | AloneInTurn:
    """Build a variant and run its first step, which compiles or captures.

    Args:
        recorder: Captures the steps of `CAPTURED`; None for CUDA graphs.

    Raises:
        RuntimeError: a step that should be captured is not.
    """
    torch.backends.cudnn.benchmark = True  # for all variants; shapes never change
    variant = CAPTURED[name](problem, recorder=recorder) if name in CAPTURED else VARIANTS[name](problem)
    variant.step()
    if name in CAPTURED and variant.not_captured is not None:
        raise RuntimeError(f"not captured: {variant.not_captured}")
    return variant
