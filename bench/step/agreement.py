"""Check that the variants of the training step train alike.

Correct runs in floating point diverge: a rounding error can switch a ReLU at zero, and BatchNorm at a high learning
rate amplifies the difference. Each variant is therefore compared with the published form in fp64 on a smaller problem,
by three errors:

- Step error. Every few steps the reference takes over the variant's weights, running statistics and momentum, and both
  do the next step. The error is the distance between the two updates of all parameters, relative to the reference's
  update; the median over the compared steps counts. It does not accumulate over the run.
- Loss error. The largest relative error of the loss in the compared steps, which include the first 20.
- Curve error. The losses of 200 steps against those of a separate run of the reference, as means over 20 steps: the
  largest relative difference.

The plain variants (published, eager, eager_nchw) on the same problem show how large rounding errors are; for the curve,
so do runs of eager whose initial weights are changed by 1e-7. A variant agrees if each of its errors is at most
NOISE = 4 times the largest of theirs (at least LEAST is always allowed), and if the first two errors are below LIMITS,
which also hold for the plain variants. The curve error is judged only over all 200 steps. On a tiny problem in fp32,
correct steps differ by 2e-6, a step without weight decay by 2e-4, and one with a loss weight off by 0.1 % by 2e-5.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from oekd_fast.training.channel_padding import sliced_state, unpadded_shapes

from .problem import Step, StepProblem
from .published import PublishedStep
from .variants import VARIANTS

STEPS, FIRST, EVERY, WINDOW = 200, 20, 10, 20
NOISE, LEAST = 4.0, 1e-6
LIMITS = {"fp32": {"step_error": 1e-3, "loss_error": 1e-4}, "bf16": {"step_error": 0.3, "loss_error": 0.05}}
PLAIN = ("published", "eager", "eager_nchw")
SHIFTED_RUNS, SHIFT = 3, 1e-7


@dataclass(frozen=True)
class Run:
    """The losses of all steps, and the errors of the compared steps."""

    losses: list[float]
    step_errors: list[float]
    loss_errors: list[float]


def small(problem: StepProblem) -> StepProblem:
    """Return the same training with small images, a lower rate and no augmentation: 200 steps stay comparable."""
    return replace(
        problem,
        classes=10,
        batch_size=min(problem.batch_size, 32),
        image_size=min(problem.image_size, 16),
        learning_rate=0.02,
        augment=False,
        batches=8,
    )


def agreement(
    names: Iterable[str], problem: StepProblem, steps: int = STEPS, begin: Callable[[str], object] = lambda name: None
) -> dict:
    """Compare variants with the published form in fp64.

    Args:
        names: Variants to compare; the plain variants are added.
        problem: The problem, already small.
        steps: Steps of each run.
        begin: Called with the name of each run before it starts.

    Returns:
        Errors and losses of each variant, the allowed errors, and whether each variant agrees.
    """

    def watched(name: str) -> Run:
        begin(name)
        return watched_run(VARIANTS[name](problem), reference, steps)

    begin("reference")
    reference = PublishedStep(problem, torch.float64)
    true_curve = free_run(PublishedStep(problem, torch.float64), steps)
    runs = {name: watched(name) for name in dict.fromkeys((*PLAIN, *names))}
    curve_errors = {name: curve_error(run.losses, true_curve) for name, run in runs.items()}
    judge_curve = steps >= STEPS
    noise = [curve_errors[name] for name in PLAIN]
    for seed in range(SHIFTED_RUNS if judge_curve else 0):
        begin(f"shifted {seed}")
        noise.append(curve_error(free_run(shifted(problem, seed), steps), true_curve))

    errors = {
        name: {
            "step_error": statistics.median(run.step_errors),
            "loss_error": max(run.loss_errors),
            "curve_error": curve_errors[name],
        }
        for name, run in runs.items()
    }
    limits = LIMITS[problem.precision]
    allowed = {
        measure: min(max(NOISE * max(errors[name][measure] for name in PLAIN), LEAST), limit)
        for measure, limit in limits.items()
    }
    if judge_curve:
        allowed["curve_error"] = NOISE * max(noise)
    return {
        "measure": " ".join(__doc__.split()),
        "steps": steps,
        "problem": vars(problem),
        "allowed": allowed,
        "reference_losses": true_curve,
        "variants": {
            name: {
                "agrees": all(errors[name][measure] <= most for measure, most in allowed.items()),
                **errors[name],
                "losses": run.losses,
            }
            for name, run in runs.items()
        },
    }


def free_run(step: Step, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        step.step()
        losses.append(step.take_loss())
    return losses


def watched_run(step: Step, reference: PublishedStep, steps: int) -> Run:
    run = Run([], [], [])
    for number in range(steps):
        compared = number < FIRST or number % EVERY == 0
        if compared:
            take_over(reference, step, number)
            before = weights(step)
        step.step()
        run.losses.append(step.take_loss())
        if compared:
            reference.step()
            change = weights(reference) - before
            run.step_errors.append(((weights(step) - before - change).norm() / change.norm()).item())
            run.loss_errors.append(abs(run.losses[-1] / reference.take_loss() - 1))
    return run


@torch.no_grad()
def take_over(reference: PublishedStep, step: Step, number: int) -> None:
    """Give `reference` the state that `step` has before its step `number`."""
    reference.family.load_state_dict(step.family.state_dict())
    shapes = unpadded_shapes(step.family)
    for ours, theirs in zip(reference.family.parameters(), step.family.parameters(), strict=True):
        state = sliced_state(step.optimizer.state[theirs], theirs.shape, shapes.get(theirs, theirs.shape))
        momentum = state.get("momentum_buffer")
        reference.optimizer.state[ours]["momentum_buffer"] = (
            torch.zeros_like(ours) if momentum is None else momentum.to(ours.dtype)
        )
    reference.batch = number % len(reference)


def weights(step: Step) -> Tensor:
    """Return all parameters without the padding of their channels, concatenated, in fp64."""
    state = step.family.state_dict()
    return torch.cat([state[name].double().flatten() for name, _ in step.family.named_parameters()])


@torch.no_grad()
def shifted(problem: StepProblem, seed: int) -> Step:
    """Build the eager variant with initial weights changed by about the precision of fp32."""
    step = VARIANTS["eager"](problem)
    generator = torch.Generator().manual_seed(seed)
    for parameter in step.family.parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
        parameter.mul_(1 + SHIFT * noise)
    return step


def curve_error(losses: list[float], true_losses: list[float]) -> float:
    pairs = zip(windows(losses), windows(true_losses), strict=True)
    return max(abs(mean / true_mean - 1) for mean, true_mean in pairs)


def windows(losses: list[float]) -> list[float]:
    return [statistics.fmean(losses[first : first + WINDOW]) for first in range(0, len(losses), WINDOW)]
