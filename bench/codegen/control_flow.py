"""Loops in a disassembled kernel."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_JUMPS = ("BRA", "JMP")
_ENDS = ("EXIT", "RET", "BRX", "JMX")  # BRX and JMX are indirect: the instruction does not hold their targets


@dataclass(frozen=True)
class Instruction:
    """One instruction, such as "@!P0 LDG.E.128 R8, [R4]"."""

    address: int
    predicate: str  # "", "@P0", "@!UP1"
    opcode: str  # "LDG.E.128"
    operands: str

    @property
    def name(self) -> str:
        """The opcode without modifiers: "LDG"."""
        return self.opcode.partition(".")[0]

    @property
    def modifiers(self) -> list[str]:
        """The modifiers of the opcode: ["E", "128"]."""
        return self.opcode.split(".")[1:]

    @property
    def target(self) -> int | None:
        """Address that a direct jump goes to, or None for other instructions."""
        if self.name not in _JUMPS:
            return None
        found = re.search(r"(0x[0-9a-f]+)\W*$", self.operands)
        return int(found[1], 16) if found else None

    @property
    def falls_through(self) -> bool:
        """Whether the next instruction may be executed after this one.

        A jump is conditional if it has a predicate or a first operand besides its target.
        """
        if self.predicate:
            return True
        return not (self.name in _ENDS or (self.name in _JUMPS and "," not in self.operands))


def natural_loops(code: Sequence[Instruction]) -> list[list[Instruction]]:
    """Return the instructions of each loop, in the order of the code; an outer loop includes its inner loops.

    Not every backward jump closes a loop: ptxas moves rare paths behind the end, and these jump back too. A loop is
    closed by a jump to a block which dominates the jump, that is, a block on every path to it.
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
    """Return, for each block reachable from the first, the blocks on every path to it, itself included."""
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
    """Return the blocks reachable from ``start`` along ``edges`` without going beyond ``stop``."""
    reached, pending = {start}, [start]
    while pending:
        block = pending.pop()
        if block != stop:
            new = set(edges[block]) - reached
            reached |= new
            pending += new
    return reached
