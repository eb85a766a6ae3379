"""A question that all ranks answer in each step without waiting for each other before the step."""

from __future__ import annotations

import torch
import torch.distributed as dist

from oekd_fast.distributed.world import World, naming_lost_ranks


class Vote:
    """The largest of the numbers of all ranks, asked for before a step and known after it.

    A rank that is asked to stop tells the others so, and all stop after the same step.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._number = torch.zeros(1, dtype=torch.int64)
        self._work: dist.Work | None = None

    def begin(self, number: int) -> None:
        """Send the number of this rank; `result` has to be called before the next `begin`."""
        self._number.fill_(number)
        if self._world.size > 1:
            with naming_lost_ranks():
                self._work = dist.all_reduce(self._number, dist.ReduceOp.MAX, async_op=True)

    def result(self) -> int:
        """Wait for all ranks and return the largest number."""
        if self._work is not None:
            with naming_lost_ranks():
                self._work.wait()
            self._work = None
        return int(self._number)

    def of_all(self, number: int) -> int:
        """Return the largest of the numbers of all ranks."""
        self.begin(number)
        return self.result()
