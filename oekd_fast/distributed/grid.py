"""Ranks as a grid: parts of the batch along one side, students along the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from oekd_fast.distributed.world import World, naming_lost_ranks


def place_students(costs: Sequence[float], ranks: int) -> tuple[int, ...]:
    """Return the rank of each student, the most expensive first, each to the rank with the least work so far."""
    work, placed = [0.0] * ranks, [0] * len(costs)
    for student in sorted(range(len(costs)), key=lambda j: -costs[j]):
        placed[student] = min(range(ranks), key=lambda rank: work[rank])
        work[placed[student]] += costs[student]
    return tuple(placed)


@dataclass(frozen=True)
class StudentGrid:
    """A world whose ranks share the students of a family: neighbouring ranks have the same images and other students.

    With P student ranks, rank r computes part r // P of the batch and the students that are placed on r % P. All ranks
    compute the base. Methods are collective among the P ranks with the same images.

    Attributes:
        world: all ranks.
        data: the place of this rank's part among all parts of the batch.
        placed: for each student, the number in 0..P - 1 of the ranks that compute it.
        column: this rank's number in 0..P - 1.
        student_group, data_group: ranks with the same images, and ranks with the same students.
    """

    world: World
    data: World
    placed: tuple[int, ...]
    column: int
    student_group: dist.ProcessGroup
    data_group: dist.ProcessGroup

    @classmethod
    def of(cls, world: World, costs: Sequence[float], student_ranks: int, device_type: str) -> StudentGrid:
        """Arrange the ranks of `world` and place students by their costs. Collective.

        Raises:
            ValueError: see `check_student_ranks`.
        """
        check_student_ranks(world.size, len(costs), student_ranks)
        parts = world.size // student_ranks
        mesh = init_device_mesh(device_type, (parts, student_ranks), mesh_dim_names=("data", "student"))
        row, column = divmod(world.rank, student_ranks)
        data = World(row, parts, world.local_rank, world.local_size, world.restarts)
        placed = place_students(costs, student_ranks)
        return cls(world, data, placed, column, mesh.get_group("student"), mesh.get_group("data"))

    @property
    def own(self) -> tuple[int, ...]:
        """Positions of the students that this rank computes, ascending."""
        return tuple(j for j, column in enumerate(self.placed) if column == self.column)

    def source(self, student: int) -> int:
        """Return the rank that computes `student` for the images of this rank."""
        return self.world.rank - self.column + self.placed[student]

    def send_from(self, student: int, tensor: Tensor) -> dist.Work:
        """Start to copy `tensor` from the rank that computes `student` to the ranks with the same images.

        `tensor` is dense; elsewhere it is overwritten.
        """
        with naming_lost_ranks():
            return dist.broadcast(flat_view(tensor), self.source(student), group=self.student_group, async_op=True)

    def add_up(self, tensor: Tensor, operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
        """Replace `tensor` by the sum over the ranks with the same images, and return it."""
        with naming_lost_ranks():
            dist.all_reduce(flat_view(tensor), operation, group=self.student_group)
        return tensor


def check_student_ranks(ranks: int, students: int, student_ranks: int) -> None:
    """Raise ValueError unless `student_ranks` of all `ranks` can share the students."""
    if ranks % student_ranks or student_ranks > students:
        raise ValueError(
            f"student_ranks: expected a divisor of {ranks}, the number of processes, that is at most {students}, the "
            f"number of students, got {student_ranks}"
        )


def wait(works: Sequence[dist.Work]) -> None:
    """Wait for exchanges that were started."""
    with naming_lost_ranks():
        for work in works:
            work.wait()


def flat_view(tensor: Tensor) -> Tensor:
    """Return the elements of a dense tensor in the order of its memory, so that nothing is permuted or copied."""
    return torch.as_strided(tensor, (tensor.numel(),), (1,))
