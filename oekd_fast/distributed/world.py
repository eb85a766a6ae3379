"""The ranks of a run, and the exchange of small values among them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from oekd_fast.common.part import Part


class LostRankError(RuntimeError):
    """Another rank has ended, or does not answer."""


@dataclass(frozen=True)
class World:
    """The processes that train one run together, seen from one of them; by default this process alone.

    All methods but `part` are collective: every rank calls them in the same order. They use the default process group
    of ``torch.distributed``, with tensors on the CPU. In a world of one they return their argument.

    Attributes:
        rank: number of this process, from 0 on. Rank 0 writes the files of the run.
        size: number of processes.
        local_rank, local_size: the same among the processes on this machine.
        restarts: how many times the launcher has restarted the processes.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    restarts: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def part(self, count: int) -> Part:
        """Return the rows of this rank among `count`; the parts of all ranks differ by one row at most."""
        return Part.whole(count).piece(self.rank, self.size)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensors of all ranks, which have the same shape and dtype, in the order of ranks, on the CPU."""
        tensor = tensor.detach().cpu()
        if self.size == 1:
            return [tensor]
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        with naming_lost_ranks():
            dist.all_gather(parts, tensor.contiguous())
        return parts

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """Return the bytes of all ranks in the order of ranks. No pickle is involved."""
        lengths = [int(length) for length in self.gather(torch.tensor(len(data)))]
        padded = torch.frombuffer(bytearray(data.ljust(max(lengths) + 1)), dtype=torch.uint8)
        return [bytes(part[:n].numpy()) for part, n in zip(self.gather(padded), lengths, strict=True)]

    def from_main(self, data: bytes | None) -> bytes:
        """Return the bytes that rank 0 passes; other ranks pass None."""
        if self.size == 1:
            return data
        length = torch.tensor(len(data) if self.is_main else 0)
        with naming_lost_ranks():
            dist.broadcast(length, 0)
            content = bytearray(data) if self.is_main else bytearray(int(length))
            if content:
                dist.broadcast(torch.frombuffer(content, dtype=torch.uint8), 0)
        return bytes(content)

    def wait_for_all(self) -> None:
        """Wait until every rank has reached this call."""
        self.gather(torch.zeros(1))


ALONE = World()


@contextmanager
def naming_lost_ranks() -> Iterator[None]:
    """Raise LostRankError in place of the errors of ``torch.distributed``, which are several lines long."""
    try:
        yield
    except RuntimeError as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        # Gloo's messages begin with the place in its source: "[.../pair.cc:123] Connection closed by peer".
        reason = lines[0].rpartition("] ")[2].split(" This may indicate", 1)[0].rstrip(".")
        raise LostRankError(f"another rank has ended, or does not answer ({reason})") from error
