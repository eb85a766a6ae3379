"""What one rank of several trains on, and which gradients the ranks add up."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from oekd_fast.common.part import Part
from oekd_fast.config.run import RunConfig
from oekd_fast.data import Batches
from oekd_fast.distributed.buckets import GradientBuckets
from oekd_fast.distributed.vote import Vote
from oekd_fast.distributed.world import World
from oekd_fast.family.ensemble import StudentEnsemble
from oekd_fast.parallel.executor import Kind


def family_buckets(ensemble: StudentEnsemble, world: World, device: torch.device) -> GradientBuckets:
    """Return the buckets of `ensemble`: a branch and its adapters in one each, base and gate in the last."""
    students = [[branch] for branch in ensemble.branches]
    compared = students if ensemble.hinted else students[1:]  # adapters lead to the maps of a teacher or of student 0
    for of_block in ensemble.adapters:
        for modules, adapter in zip(compared, of_block, strict=True):
            modules.append(adapter)
    base = [ensemble.base] if ensemble.gate is None else [ensemble.base, ensemble.gate]
    # The CPU's executor starts the largest student first. NCCL runs sums one after the other, so that on CUDA, where
    # all students run at once, the sum of the student that ends first comes first.
    order = range(len(students))
    buckets = GradientBuckets(world, students, base, order if device.type == "cpu" else order[::-1])
    if buckets.active:
        buckets.share = torch.ones((), dtype=torch.float64, device=device)
    return buckets


def begin_part(batches: Batches, order: Tensor, batch_size: int, first: int, world: World) -> Part:
    """Start an epoch of the rows of this rank in each batch, and return which rows of a batch these are.

    Args:
        order, batch_size, first: see `Batches.begin`; `batch_size` counts the images of all ranks.
    """
    part = world.part(batch_size)
    if world.size > 1:
        count = len(order) // batch_size
        order = order[: count * batch_size].view(count, batch_size)[:, part.rows].flatten()
    batches.begin(order, part.count, first)
    return part


def executor_kind(config: RunConfig, world: World) -> Kind:
    """Return the kind of executor: norms over all ranks need students that run in the same order on each rank.

    Raises:
        ValueError: the config asks for a parallel executor in that case.
    """
    if world.size == 1 or config.norms == "local":
        return config.executor
    if config.executor == "parallel":
        raise ValueError(
            "executor: expected auto or sequential with norms='global' and several processes, got parallel"
        )
    return "sequential"


def agreement(world: World) -> Callable[[bool], bool]:
    """Return a collective function that returns whether its argument is true on all ranks."""
    vote = Vote(world)
    return lambda holds: vote.of_all(int(not holds)) == 0
