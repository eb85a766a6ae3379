"""Loops in a disassembled kernel."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_JUMPS = ("BRA", "JMP")
_ENDS = ("EXIT", "RET", "BRX", "JMX")  # indirect jumps: where they go is not written in the instruction


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str  # "", "@P0", "@!UP1"
    opcode: str  # "LDG.E.128"
    operands: str

    @property
    def name(self) -> str:
        """LDG"""
        return self.opcode.partition(".")[0]

    @property
    def modifiers(self) -> list[str]:
        """E, 128"""
        return self.opcode.split(".")[1:]

    @property
    def target(self) -> int | None:
        """Where a jump goes."""
        if self.name not in _JUMPS:
            return None
        found = re.search(r"(0x[0-9a-f]+)\W*$", self.operands)
        return int(found[1], 16) if found else None

    @property
    def falls_through(self) -> bool:
        """Whether the next instruction may follow. Jumps are conditional by a predicate or by a first operand."""
        if self.predicate:
            return True
        return not (self.name in _ENDS or (self.name in _JUMPS and "," not in self.operands))


def natural_loops(code: Sequence[Instruction]) -> list[list[Instruction]]:
    """The instructions of each loop, in the order of the code; an outer loop holds its inner ones.

    A jump backwards is not enough: ptxas moves rare paths behind the end, and they jump back too. A loop is closed by a
    jump to a block that every path to the jump has come through.
    """
    blocks = _blocks(code)
    successors = _successors(blocks)
    dominators = _dominators(successors)
    predecessors = [[] for _ in blocks]
    for block, following in enumerate(successors):
        for successor in following:
            predecessors[successor].append(block)

    loops: dict[int, set[int]] = {}
    for block, following in enumerate(successors):
        for header in following:
            if header in dominators.get(block, ()):
                loops.setdefault(header, {header}).update(_reaching(block, header, predecessors))
    return [[i for block in sorted(loop) for i in blocks[block]] for _, loop in sorted(loops.items())]


def _blocks(code: Sequence[Instruction]) -> list[list[Instruction]]:
    starts = {i.target for i in code if i.target is not None}
    blocks: list[list[Instruction]] = []
    begin = True
    for i in code:
        if begin or i.address in starts:
            blocks.append([])
        blocks[-1].append(i)
        begin = i.target is not None or not i.falls_through
    return blocks


def _successors(blocks: Sequence[Sequence[Instruction]]) -> list[list[int]]:
    at = {block[0].address: index for index, block in enumerate(blocks)}
    successors = []
    for index, block in enumerate(blocks):
        last = block[-1]
        following = [at[last.target]] if last.target in at else []
        if last.falls_through and index + 1 < len(blocks):
            following.append(index + 1)
        successors.append(following)
    return successors


def _dominators(successors: Sequence[Sequence[int]]) -> dict[int, set[int]]:
    """For each block that the first one reaches: the blocks on every path to it, itself included."""
    reached = _reaching(0, None, successors)
    dominators = {block: {0} if block == 0 else set(reached) for block in reached}
    changed = True
    while changed:
        changed = False
        for block in reached:
            for successor in successors[block]:
                smaller = dominators[successor] & (dominators[block] | {successor})
                if smaller != dominators[successor]:
                    dominators[successor] = smaller
                    changed = True
    return dominators


def _reaching(start: int, stop: int | None, edges: Sequence[Sequence[int]]) -> set[int]:
    """Blocks met from ``start`` along ``edges``, going no further than ``stop``."""
    met, pending = {start}, [start]
    while pending:
        block = pending.pop()
        if block != stop:
            new = set(edges[block]) - met
            met |= new
            pending += new
    return met
