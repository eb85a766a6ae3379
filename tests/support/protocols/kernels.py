"""The synchronisation of the Triton kernels, as programs of `machine`: who writes and reads what, in which order.

`tests/kernels/test_protocols.py` compares the operations below with those in the sources of the kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .machine import BARRIER, Add, Program, Read, Shared, Store, Until, Warp, Write

TICKETS, DONE = "tickets", "done"


@dataclass(frozen=True)
class Arrival:
    """`last_to_arrive` of kernels/common/arrival.py. The fields other than the default are mutations of it."""

    order: str = "acq_rel"
    barrier_before: bool = True
    barrier_after: bool = True
    reset: bool = True

    def last(self, warp: int, counter: Any, programs: int, reset: bool = True) -> Iterator[Any]:
        """Whether this program is the last of `programs` to arrive; `reset` sets the counter to 0."""
        if self.barrier_before:
            yield BARRIER
        before = yield Shared(Add(counter, 1, self.order))
        if self.barrier_after:
            yield BARRIER
        last = before == programs - 1
        if last and reset and self.reset and warp == 0:
            yield Store(counter, 0)
        return last


def tree(levels: tuple[int, ...], warps: int, arrival: Arrival) -> Program:
    """Programs that add up shares in groups, groups of groups, and so on: the feature kernels and those of one level.

    Args:
        levels: number of members of a group at each level; their product is the number of programs.
        warps: warps of a program.
        arrival: how programs arrive.
    """

    def program(number: int, warp: int) -> Warp:
        share = number
        yield Write(("share", 0, share, warp))
        yield Write(("squares", number, warp))
        for level, members in enumerate(levels):
            group = share // members
            if not (yield from arrival.last(warp, ("arrived", level, group), members)):
                return
            for member in range(group * members, (group + 1) * members):
                # A warp adds up elements that other warps have stored.
                for other in range(warps):
                    yield Read(("share", level, member, other))
            yield Write(("share", level + 1, group, warp))
            share = group
        total = 1
        for members in levels:
            total *= members
        for other in range(total):
            yield Read(("squares", other, (warp + 1) % warps))

    return program


@dataclass(frozen=True)
class Streamed:
    """kernels/ensemble_kd/streamed.py.

    Args:
        rows, chunks, lag: sizes of the launch.
        grads: whether there is a second pass.
        programs, warps: sizes of the launch.
        sum_rows: rows whose losses a program sums at a time.
        arrival: how programs arrive.
        ready_order, poll_order, final_order: memory orders of the row's announcement, of the wait for it before the
            gradients, and before the sums. The fields from here on are mutations where they are not the default.
        barrier_before_ready, barrier_after_poll, barrier_after_final: barriers beside them.
        gradients_first: number the gradients of a turn before its statistics.
        clean: reset the counters at the end.
    """

    rows: int
    chunks: int
    lag: int
    grads: bool
    programs: int
    warps: int
    sum_rows: int
    arrival: Arrival = Arrival()
    ready_order: str = "release"
    poll_order: str = "acquire"
    final_order: str = "acquire"
    barrier_before_ready: bool = True
    barrier_after_poll: bool = True
    barrier_after_final: bool = True
    gradients_first: bool = False
    clean: bool = True

    def __call__(self, number: int, warp: int) -> Warp:
        passes = 2 if self.grads else 1
        turns = self.rows + (self.lag if self.grads else 0)
        ticket = yield Shared(Add(TICKETS, 1, "relaxed"))
        while ticket < turns * passes * self.chunks:
            row, within = divmod(ticket, passes * self.chunks)
            chunk, second = within % self.chunks, within >= self.chunks
            if self.grads and self.gradients_first:
                second = not second
            if second:
                row -= self.lag
            if 0 <= row < self.rows:
                yield from self._gradients(warp, row, chunk) if second else self._statistics(warp, row, chunk)
            ticket = yield Shared(Add(TICKETS, 1, "relaxed"))

        mine = range(number, self.rows, self.programs)
        for first in range(0, len(mine), self.sum_rows):
            rows = mine[first : first + self.sum_rows]
            # A row is waited for by one thread, which is in any of the warps.
            for i, row in enumerate(rows):
                if i % self.warps == warp:
                    yield Until(("arrived", row), self.chunks + 1, self.final_order)
            if self.barrier_after_final:
                yield BARRIER
            for row in rows:
                yield from self._read_row(warp, row)
        yield Write(("partials", number, warp))
        if (yield from self.arrival.last(warp, DONE, self.programs)):
            for other in range(self.programs):
                yield Read(("partials", other, (warp + 1) % self.warps))
            if self.clean:
                places = [TICKETS, DONE, *(("arrived", row) for row in range(self.rows))]
                for i, place in enumerate(places):
                    # DONE is reset by warp 0 in `last`, and again here.
                    if i % self.warps == warp and place != DONE:
                        yield Store(place, 0)

    def _statistics(self, warp: int, row: int, chunk: int) -> Iterator[Any]:
        yield Write(("chunk", row, chunk, warp))
        if (yield from self.arrival.last(warp, ("arrived", row), self.chunks, reset=False)):
            for part in range(self.chunks):
                for other in range(self.warps):
                    yield Read(("chunk", row, part, other))
            yield Write(("row", row, warp))
            if self.barrier_before_ready:
                yield BARRIER
            if warp == 0:
                yield Add(("arrived", row), 1, self.ready_order)

    def _gradients(self, warp: int, row: int, chunk: int) -> Iterator[Any]:
        yield Shared(Until(("arrived", row), self.chunks + 1, self.poll_order))
        if self.barrier_after_poll:
            yield BARRIER
        yield from self._read_row(warp, row)
        yield Write(("gradient", row, chunk, warp))

    def _read_row(self, warp: int, row: int) -> Iterator[Any]:
        for other in range(self.warps):
            yield Read(("row", row, other))
