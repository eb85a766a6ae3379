"""Atomics, polls and barriers in the PTX of a kernel, whose memory model gives them their meaning.

A thread that acquires sees what others have released; a barrier extends this to all threads of the program. Therefore

- a poll, an acquiring access that is not also a release, is repeated in a loop of its own;
- after an acquire, every path crosses a barrier before other accesses to global memory;
- before a release, every path crosses a barrier after the last store to global memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .control_flow import Instruction, natural_loops

_SCOPE = re.compile(r"[{}]")
_LABEL = re.compile(r"([$%\w]+):(?!:)")
_DIRECTIVE = re.compile(r"\.[^;]*;?")
_STATEMENT = re.compile(r"(?:(@!?[$%\w]+)\s+)?([a-z][\w.:]*)\s*([^;]*);")


@dataclass(frozen=True)
class Synchronisation:
    """The synchronising accesses of a kernel.

    Attributes:
        polls: Acquiring accesses that a loop repeats.
        arrivals: Additions that both acquire and release.
        releases: Accesses that only release.
        faults: Accesses without their loop or barrier.
    """

    polls: int
    arrivals: int
    releases: int
    faults: tuple[str, ...]


def synchronisation(ptx: str) -> Synchronisation:
    """Return the synchronising accesses of the only kernel in a PTX module."""
    code = parse_ptx(ptx)
    after = {i.address: _successors(i, len(code)) for i in code}
    before: dict[int, list[int]] = {i.address: [] for i in code}
    for address, following in after.items():
        for successor in following:
            before[successor].append(address)
    loops = sorted(natural_loops(code), key=len)

    polls, faults = 0, []
    acquires = [i for i in code if _acquires(i)]
    releases = [i for i in code if _releases(i)]
    for access in acquires:
        if not _releases(access):
            if _is_repeated(access, loops):
                polls += 1
            else:
                faults.append(f"{access.opcode} is not repeated")
        if early := _meets(access, code, after, lambda i: _is_global(i) and not _acquires(i)):
            faults.append(f"{early.opcode} follows {access.opcode} without a barrier")
    for access in releases:
        if late := _meets(access, code, before, lambda i: _is_global(i) and i.name != "ld"):
            faults.append(f"{late.opcode} precedes {access.opcode} without a barrier")
    arrivals = sum(map(_acquires, releases))
    return Synchronisation(polls, arrivals, len(releases) - arrivals, tuple(faults))


def parse_ptx(text: str) -> list[Instruction]:
    """Return the instructions of the kernel, numbered from 0, with jumps named as in `control_flow`.

    Raises:
        ValueError: the text does not hold exactly one kernel, or a jump has no label.
    """
    entries = re.split(r"\.entry\b", text)
    if len(entries) != 2:
        raise ValueError(f"ptx: expected one kernel, got {len(entries) - 1}")
    names = _Labels()
    found: list[tuple[int, str, str, str]] = []
    for line in entries[1].splitlines():
        rest = line.partition("//")[0].strip()
        while rest:
            if part := _SCOPE.match(rest):
                names.open() if part[0] == "{" else names.close()
            elif part := _LABEL.match(rest):
                names.define(part[1], len(found))
            elif part := _STATEMENT.match(rest):
                found.append((names.scope, part[1] or "", part[2], part[3].strip()))
            elif not (part := _DIRECTIVE.match(rest)):
                break
            rest = rest[part.end() :].lstrip()
    return [
        Instruction(address, predicate, *_as_jump(opcode, operands, lambda name, scope=scope: names.find(name, scope)))
        for address, (scope, predicate, opcode, operands) in enumerate(found)
    ]


class _Labels:
    """Labels by the block in braces that they belong to, since blocks of inline assembly repeat names."""

    def __init__(self):
        self._parents: list[int] = [0]  # of each scope; scope 0 is outside all braces
        self._addresses: dict[tuple[int, str], int] = {}
        self.scope = 0

    def open(self) -> None:
        self._parents.append(self.scope)
        self.scope = len(self._parents) - 1

    def close(self) -> None:
        self.scope = self._parents[self.scope]

    def define(self, name: str, address: int) -> None:
        self._addresses[self.scope, name] = address

    def find(self, name: str, scope: int) -> int:
        """Return the address of the label that `name` means in `scope`."""
        while (scope, name) not in self._addresses:
            if scope == 0:
                raise ValueError(f"ptx: expected a label {name}, got none")
            scope = self._parents[scope]
        return self._addresses[scope, name]


def _as_jump(opcode: str, operands: str, address_of: Callable[[str], int]) -> tuple[str, str]:
    """Return the opcode and operands, with those of a jump or a return as `control_flow` knows them."""
    name = opcode.partition(".")[0]
    if name == "bra":
        return "BRA", hex(address_of(operands))
    return (name.upper(), "") if name in ("ret", "exit") else (opcode, operands)


def _successors(i: Instruction, end: int) -> list[int]:
    following = [i.address + 1] if i.falls_through and i.address + 1 < end else []
    return following if i.target is None else [*following, i.target]


def _is_barrier(i: Instruction) -> bool:
    return i.name in ("bar", "barrier") and "sync" in i.modifiers and "warp" not in i.modifiers


def _is_global(i: Instruction) -> bool:
    return i.name in ("ld", "st", "atom", "red") and "global" in i.modifiers


def _acquires(i: Instruction) -> bool:
    return _is_global(i) and bool({"acquire", "acq_rel"} & set(i.modifiers))


def _releases(i: Instruction) -> bool:
    return _is_global(i) and bool({"release", "acq_rel"} & set(i.modifiers))


def _is_repeated(access: Instruction, loops: Sequence[Sequence[Instruction]]) -> bool:
    """Whether the smallest loop around an access has no accesses to global memory that do not acquire."""
    innermost = next((loop for loop in loops if access in loop), None)
    return innermost is not None and all(_acquires(i) for i in innermost if _is_global(i))


def _meets(
    start: Instruction,
    code: Sequence[Instruction],
    edges: dict[int, list[int]],
    wanted: Callable[[Instruction], bool],
) -> Instruction | None:
    """Return a wanted instruction on a path from `start` along `edges` without a barrier before it."""
    seen, pending = set(), list(edges[start.address])
    while pending:
        address = pending.pop()
        if address in seen or _is_barrier(code[address]):
            continue
        seen.add(address)
        if wanted(code[address]):
            return code[address]
        pending += edges[address]
    return None
