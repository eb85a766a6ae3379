"""Whether the variants of the training step train alike: a fast step that trains differently does not count.

Runs in floating point part ways however right they are: a ReLU at zero turns a rounding into another gradient, and
BatchNorm at a high learning rate lets it grow. So each variant is held to three measures on a smaller problem, all
against the published form in fp64:

- Step error. Every few steps the reference takes over the variant's weights, running statistics and momentum, and both
  do the same next step: the distance of the two changes of all parameters, relative to the reference's change; median
  over the steps looked at. No chaos is in it: each step of the run is the exact one up to rounding, or it is not.
- Loss error. Relative error of the loss in those steps, the first 20 all among them; the largest.
- Curve error. The 200 losses of the free run against those of a free run of the reference, as means over 20 steps:
  the largest relative difference.

What rounding may do is told by the plain variants (published, eager, eager_nchw) on the same problem, for the curve
also by runs of eager from first weights that are off by 1e-7: a variant agrees if each error is at most NOISE = 4 times
the largest of theirs (a few units of fp32 are always allowed), and the first two are below LIMITS, to which the plain
ones are held too. The curve is judged only over all 200 steps: in fewer, one ReLU more or less decides. On a tiny
problem in fp32 right steps differ by 2e-6, without weight decay by 2e-4, with a loss weight a thousandth off by 2e-5.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

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
    """Losses of all steps; of the steps looked at the errors against the reference."""

    losses: list[float]
    step_errors: list[float]
    loss_errors: list[float]


def small(problem: StepProblem) -> StepProblem:
    """The same training at a size whose 200 steps stay comparable: a lower rate, small images, nothing random."""
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
    """What the results hold: errors and curve of each variant, what was allowed, and who agrees.

    Args:
        problem: already small.
        begin: told of each run before it.
    """

    def watched(name: str) -> Run:
        begin(name)
        return watched_run(VARIANTS[name](problem), reference, steps)

    begin("reference")
    reference = PublishedStep(problem, torch.float64)
    true_curve = free_run(PublishedStep(problem, torch.float64), steps)
    runs = {name: watched(name) for name in dict.fromkeys((*PLAIN, *names))}
    curve_errors = {name: curve_error(run.losses, true_curve) for name, run in runs.items()}
    whole = steps >= STEPS
    noise = [curve_errors[name] for name in PLAIN]
    for seed in range(SHIFTED_RUNS if whole else 0):
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
    if whole:
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
        looked_at = number < FIRST or number % EVERY == 0
        if looked_at:
            take_over(reference, step, number)
            before = weights(step)
        step.step()
        run.losses.append(step.take_loss())
        if looked_at:
            reference.step()
            change = weights(reference) - before
            run.step_errors.append(((weights(step) - before - change).norm() / change.norm()).item())
            run.loss_errors.append(abs(run.losses[-1] / reference.take_loss() - 1))
    return run


@torch.no_grad()
def take_over(reference: PublishedStep, step: Step, number: int) -> None:
    """Give `reference` the state of `step` before its step `number`."""
    reference.family.load_state_dict(step.family.state_dict())
    for ours, theirs in zip(reference.family.parameters(), step.family.parameters(), strict=True):
        momentum = step.optimizer.state[theirs].get("momentum_buffer")
        reference.optimizer.state[ours]["momentum_buffer"] = (
            torch.zeros_like(ours) if momentum is None else momentum.to(ours.dtype)
        )
    reference.batch = number % len(reference)


def weights(step: Step) -> Tensor:
    """All parameters in fp64, one after the other."""
    return torch.cat([parameter.detach().double().flatten() for parameter in step.family.parameters()])


@torch.no_grad()
def shifted(problem: StepProblem, seed: int) -> Step:
    """Eager, from first weights that are off by about as much as fp32 can tell."""
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
