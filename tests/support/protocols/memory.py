"""Device memory under the happens-before order of PTX's memory model, which reports accesses that nothing orders.

Every warp has a vector clock: the number of steps of each warp that happened before its own next step. Barriers and
pairs of release and acquire join clocks; nothing else does. Two accesses to the same data, of which one is a write,
need an order, otherwise the memory raises `Race`. Values are those of one interleaving. That is enough, because an
interleaving without unordered accesses has the values of every other execution with the same order.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

Clock = list[int]


class Race(AssertionError):
    """Two accesses to the same data are not ordered."""


def join(clock: Clock, other: Clock) -> None:
    """Let all that happened before `other` happen before `clock`, in place."""
    for i, steps in enumerate(other):
        if steps > clock[i]:
            clock[i] = steps


@dataclass
class _Cell:
    """Accesses to one place: warp -> its step."""

    writes: dict[int, int] = field(default_factory=dict)
    reads: dict[int, int] = field(default_factory=dict)


@dataclass
class _Counter:
    """An integer that warps add to atomically, and the clock that an acquire receives from it."""

    value: int = 0
    released: Clock | None = None
    adds: dict[int, int] = field(default_factory=dict)
    stores: dict[int, int] = field(default_factory=dict)


class Memory:
    """Data and counters of one launch after the other; `begin_launch` orders launches like a stream.

    Attributes:
        counters: the counters by place, kept from launch to launch.
    """

    def __init__(self) -> None:
        self.counters: dict[Hashable, _Counter] = {}
        self._cells: dict[Hashable, _Cell] = {}
        self.clocks: list[Clock] = []

    def begin_launch(self, warps: int) -> None:
        """Start a launch of that many warps, which happens after everything before."""
        self._cells.clear()
        for counter in self.counters.values():
            counter.released = None
            counter.adds.clear()
            counter.stores.clear()
        self.clocks = [[0] * warps for _ in range(warps)]
        for warp, clock in enumerate(self.clocks):
            clock[warp] = 1

    def value(self, place: Hashable) -> int:
        """Return the value of a counter."""
        return self._counter(place).value

    def write(self, warp: int, place: Hashable) -> None:
        """Write data, after all other accesses to it."""
        cell = self._cells.setdefault(place, _Cell())
        self._check(warp, cell.writes, "write", "written", place)
        self._check(warp, cell.reads, "write", "read", place)
        cell.writes = {warp: self._step(warp)}
        cell.reads = {}

    def read(self, warp: int, place: Hashable) -> None:
        """Read data that has been written."""
        cell = self._cells.get(place)
        if cell is None or not cell.writes:
            raise Race(f"warp {warp} reads {place}, which nobody has written")
        self._check(warp, cell.writes, "read", "written", place)
        cell.reads[warp] = self._step(warp)

    def add(self, warp: int, place: Hashable, amount: int, order: str) -> int:
        """Add to a counter atomically and return its value before.

        Args:
            warp: number of the warp.
            place: the counter.
            amount: what is added; 0 reads it.
            order: "relaxed", "acquire", "release" or "acq_rel".
        """
        counter = self._counter(place)
        self._check(warp, counter.stores, "add to", "stored", place)
        clock = self.clocks[warp]
        if order in ("acquire", "acq_rel") and counter.released is not None:
            join(clock, counter.released)
        counter.adds[warp] = self._step(warp)
        if order in ("release", "acq_rel"):
            # A read-modify-write continues the release sequences of those before it.
            if counter.released is None:
                counter.released = list(clock)
            else:
                join(counter.released, clock)
        before, counter.value = counter.value, counter.value + amount
        return before

    def store(self, warp: int, place: Hashable, value: int) -> None:
        """Store to a counter without an atomic, which every access of other warps must be ordered with."""
        counter = self._counter(place)
        self._check(warp, counter.adds, "store to", "added to", place)
        self._check(warp, counter.stores, "store to", "stored", place)
        counter.value, counter.released = value, None
        counter.stores = {warp: self._step(warp)}
        counter.adds = {}

    def barrier(self, warps: range) -> None:
        """Order the steps of these warps before it before all their steps after it."""
        whole = list(self.clocks[warps[0]])
        for warp in warps[1:]:
            join(whole, self.clocks[warp])
        for warp in warps:
            self.clocks[warp] = list(whole)
            self._step(warp)

    def _counter(self, place: Hashable) -> _Counter:
        return self.counters.setdefault(place, _Counter())

    def _step(self, warp: int) -> int:
        clock = self.clocks[warp]
        clock[warp] += 1
        return clock[warp]

    def _check(self, warp: int, others: dict[int, int], doing: str, done: str, place: Hashable) -> None:
        clock = self.clocks[warp]
        for other, step in others.items():
            if other != warp and clock[other] < step:
                raise Race(f"warp {warp} would {doing} {place}, which warp {other} has {done} without an order")
