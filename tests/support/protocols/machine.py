"""A GPU that runs the programs of a launch in a random order, a few of them at a time.

A program is a function that returns a generator for each of its warps. The generators yield operations: `Read`,
`Write`, `Add`, `Store`, `Until`, `BARRIER`. `Shared` is done by warp 0 alone and its result given to all warps, which
is how Triton computes a scalar atomic. It orders nothing by itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .memory import Memory


class Hang(AssertionError):
    """No program can go on."""


@dataclass(frozen=True)
class Read:
    place: Hashable


@dataclass(frozen=True)
class Write:
    place: Hashable


@dataclass(frozen=True)
class Add:
    """An atomic addition; the warp receives the value before."""

    counter: Hashable
    amount: int
    order: str


@dataclass(frozen=True)
class Store:
    """A plain store to a counter."""

    counter: Hashable
    value: int


@dataclass(frozen=True)
class Until:
    """Atomic additions of 0, or relaxed loads, until the counter is at least `least`."""

    counter: Hashable
    least: int
    order: str


@dataclass(frozen=True)
class Shared:
    """An operation of warp 0 whose result all warps of the program receive."""

    operation: Add | Until


class _Barrier:
    pass


BARRIER = _Barrier()
Warp = Generator[Any, Any, None]
Program = Callable[[int, int], Warp]  # of a program's number and a warp's number


@dataclass
class _Running:
    """A program that is resident."""

    first: int  # number of its first warp in the launch
    warps: list[Warp]
    pending: list[Any]  # the next operation of each warp; None once it has ended
    results: list[Any] = field(default_factory=list)  # of its shared operations, in order
    received: list[int] = field(default_factory=list)  # how many of them each warp has received

    @property
    def ended(self) -> bool:
        return all(operation is None for operation in self.pending)


class Machine:
    """Runs launches on one memory.

    Args:
        seed: of the order in which warps take their steps and programs start.
        resident: most programs that run at a time.
        warps: warps of a program.
        in_order: start programs in the order of their numbers, as GPUs do today; otherwise in a random order.
    """

    def __init__(self, seed: int, resident: int, warps: int, in_order: bool) -> None:
        self.memory = Memory()
        self._random = random.Random(seed)
        self._resident, self._warps, self._in_order = resident, warps, in_order

    def launch(self, program: Program, programs: int) -> None:
        """Run a launch to its end.

        Raises:
            Race: accesses of two warps are not ordered.
            Hang: no resident program can go on.
        """
        self.memory.begin_launch(programs * self._warps)
        waiting = list(range(programs))
        if not self._in_order:
            self._random.shuffle(waiting)
        waiting.reverse()
        running: list[_Running] = []
        while waiting or running:
            while waiting and len(running) < self._resident:
                running.append(self._start(program, waiting.pop()))
            ready = [(p, w) for p in running for w in range(self._warps) if self._can_go_on(p, w)]
            if not ready:
                raise Hang(f"{len(running)} programs wait for each other, {len(waiting)} have not started")
            # Some steps of one warp in a row: otherwise all programs would run at nearly the same pace.
            p, w = self._random.choice(ready)
            for _ in range(self._random.choice((1, 1, 3, 20))):
                self._go_on(p, w)
                if not self._can_go_on(p, w):
                    break
            if p.ended:
                running.remove(p)

    def _start(self, program: Program, number: int) -> _Running:
        warps = [program(number, w) for w in range(self._warps)]
        return _Running(number * self._warps, warps, [next(w, None) for w in warps], received=[0] * self._warps)

    def _can_go_on(self, p: _Running, w: int) -> bool:
        operation = p.pending[w]
        if operation is None:
            return False
        if isinstance(operation, Shared):
            if p.received[w] < len(p.results):
                return True
            return w == 0 and self._holds(operation.operation)
        if operation is BARRIER:
            return w == 0 and all(other is BARRIER for other in p.pending)
        return self._holds(operation)

    def _holds(self, operation: Any) -> bool:
        return not isinstance(operation, Until) or self.memory.value(operation.counter) >= operation.least

    def _go_on(self, p: _Running, w: int) -> None:
        operation, warp, memory = p.pending[w], p.first + w, self.memory
        if operation is BARRIER:
            memory.barrier(range(p.first, p.first + self._warps))
            for other in range(self._warps):
                self._resume(p, other, None)
            return
        if isinstance(operation, Shared):
            if p.received[w] == len(p.results):
                p.results.append(self._do(warp, operation.operation))
            p.received[w] += 1
            self._resume(p, w, p.results[p.received[w] - 1])
            return
        self._resume(p, w, self._do(warp, operation))

    def _do(self, warp: int, operation: Any) -> Any:
        memory = self.memory
        match operation:
            case Read(place):
                return memory.read(warp, place)
            case Write(place):
                return memory.write(warp, place)
            case Add(counter, amount, order):
                return memory.add(warp, counter, amount, order)
            case Store(counter, value):
                return memory.store(warp, counter, value)
            case Until(counter, _, order):
                return memory.add(warp, counter, 0, order)
        raise TypeError(f"operation: expected one of this module, got {operation!r}")

    @staticmethod
    def _resume(p: _Running, w: int, result: Any) -> None:
        try:
            p.pending[w] = p.warps[w].send(result)
        except StopIteration:
            p.pending[w] = None


def dirty(memory: Memory) -> Sequence[Hashable]:
    """Return the counters that are not 0, as they must be before the next launch."""
    return [place for place, counter in memory.counters.items() if counter.value != 0]
