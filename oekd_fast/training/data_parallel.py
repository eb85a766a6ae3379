"""What one rank of several trains on, and which gradients the ranks add up."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from oekd_fast.common.part import Part
from oekd_fast.config.run import RunConfig
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import Batches
from oekd_fast.distributed.buckets import Bucket, GradientBuckets
from oekd_fast.distributed.grid import StudentGrid
from oekd_fast.distributed.vote import Vote
from oekd_fast.distributed.world import World
from oekd_fast.family.ensemble import StudentEnsemble
from oekd_fast.losses.calls import KDOptions
from oekd_fast.parallel.executor import Kind


def student_modules(ensemble: StudentEnsemble) -> list[list[nn.Module]]:
    """Return the modules of each student that no other one has: its branch, its adapters and its helpers."""
    students: list[list[nn.Module]] = [[branch] for branch in ensemble.branches]
    compared = students if ensemble.hinted else students[1:]  # adapters lead to the maps of a teacher or of student 0
    for of_block in (*ensemble.adapters, *ensemble.helpers):
        for modules, adapter in zip(compared, of_block, strict=True):
            modules.append(adapter)
    return students


def shared_modules(ensemble: StudentEnsemble) -> list[nn.Module]:
    """Return the modules of all students: the base, and the gate if there is one."""
    return [ensemble.base] if ensemble.gate is None else [ensemble.base, ensemble.gate]


def family_buckets(
    ensemble: StudentEnsemble, world: World, device: torch.device, grid: StudentGrid | None, exact: bool
) -> GradientBuckets:
    """Return the buckets of the students that this rank computes, and that of base and gate.

    Args:
        grid: how the ranks share the students; None: each of them computes all.
        exact: whether each rank computes the whole gradient of the base for its images; see `OwnStudents`.
    """
    modules = student_modules(ensemble)
    ranks, group, own = world.size, None, range(len(modules))
    if grid is not None:
        ranks, group, own = grid.data.size, grid.data_group, grid.own
    students = {j: Bucket(f"student {j + 1}", modules[j], ranks, group) for j in own}
    if grid is None or exact:
        base = Bucket("base", shared_modules(ensemble), ranks, group)
    else:
        base = Bucket("base", shared_modules(ensemble), world.size, None, copies=world.size // grid.data.size)
    # The CPU's executor starts the largest student first. NCCL runs sums one after the other, so that on CUDA, where
    # all students run at once, the sum of the student that ends first comes first.
    order = own if device.type == "cpu" else own[::-1]
    # Float32 would round shares such as 31/63; MPS has no float64, and no other rank.
    share = torch.ones((), dtype=torch.float64 if world.size > 1 else torch.float32, device=device)
    return GradientBuckets(students, base, order, share)


def no_buckets(buckets: GradientBuckets) -> GradientBuckets:
    """Return buckets that send nothing, for gradients to which others will be added; the share is that of `buckets`."""
    return GradientBuckets({}, Bucket("base", [], ranks=1), [], buckets.share)


def begin_part(batches: Batches, order: Tensor, batch_size: int, first: int, world: World) -> Part:
    """Start an epoch of the rows of this rank in each batch, and return which rows of a batch these are.

    Args:
        order, batch_size, first: see `Batches.begin`; `batch_size` counts the images of all ranks.
    """
    part = world.part(batch_size)
    batches.begin(order_of_part(order, batch_size, part), part.count, first)
    return part


def order_of_part(order: Tensor, batch_size: int, part: Part) -> Tensor:
    """Return the rows of `order`, int64 [M], that are in `part` of a batch, batch after batch."""
    if part.count == batch_size:
        return order
    count = len(order) // batch_size
    return order[: count * batch_size].view(count, batch_size)[:, part.rows].flatten()


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


def check_grid(config: TrainConfig, loss: KDOptions, teaching: object) -> None:
    """Raise ValueError if the students of a training cannot be on several ranks."""
    if not loss.detach_ensemble:
        reason = "detach_ensemble=False, whose gradients go through all students"
    elif teaching is not None:
        option = "learn_from_average" if config.learn_from_average else "codistillation_delay"
        reason = f"{option}, whose copies of all students are on each rank"
    elif config.norms == "global":
        reason = "norms='global'"
    else:
        return
    raise ValueError(f"student_ranks: expected 1 with {reason}, got {config.student_ranks}")
