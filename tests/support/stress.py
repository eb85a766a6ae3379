"""Disturbances under which a launch must return the same bits: poisoned memory, and delays in the kernels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import torch
from torch import Tensor

from oekd_fast.kernels.common.delay import DELAYS
from oekd_fast.kernels.common.launch import Launch
from oekd_fast.kernels.ensemble_kd.launch import gradients_launch, loss_launch
from oekd_fast.kernels.ensemble_kd.problem import Problem


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill uninitialised tensors with NaN, or with -2^30 if integer, so that elements which are never written show."""

    def poisoned(make):
        def made(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(math.nan if tensor.is_floating_point() else -(2**30))

        return made

    with (
        mock.patch.object(torch, "empty", poisoned(torch.empty)),
        mock.patch.object(torch, "empty_like", poisoned(torch.empty_like)),
    ):
        yield


def random_delays(longest: int, seed: int, device: torch.device) -> Tensor:
    """Return the argument `delays` of a kernel: a quarter of the delays up to `longest` loads, the others 0."""
    generator = torch.Generator().manual_seed(seed)
    delays = torch.randint(longest + 1, (DELAYS.value + 1,), generator=generator, dtype=torch.int32)
    delays[torch.rand(DELAYS.value + 1, generator=generator) < 0.75] = 0
    delays[-1] = 1
    return delays.to(device)


def with_delays(launch: Launch, delays: Tensor | None) -> Launch:
    return replace(launch, arguments={**launch.arguments, "delays": delays})


def loss_and_gradients(problem: Problem, plan=None, delays: Tensor | None = None) -> list[Tensor]:
    """Run a launch of the loss with gradients, then one of the gradients alone; return all that they write."""
    grads = [torch.empty_like(z) for z in problem.logits]
    result, launch = loss_launch(problem, grads, plan=plan, keep_rows=True)
    with_delays(launch, delays).run(problem.device)
    again = [torch.empty_like(z) for z in problem.logits]
    of_weights = torch.empty(len(again), device=problem.device) if not problem.detach_ensemble else None
    upstream = torch.full((), 2.0, device=problem.device)
    second = gradients_launch(problem, again, upstream, result.row_statistics, result.counted, of_weights)
    with_delays(second, delays).run(problem.device)
    return [*result.statistics, *grads, *again, *([] if of_weights is None else [of_weights])]
