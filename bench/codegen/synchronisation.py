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

_STATEMENT = re.compile(r"(?:(@!?%p\d+)\s+)?([a-z][\w.:]*)\s*([^;]*);")
_LABEL = re.compile(r"(\$L\w+):")


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
        ValueError: the text does not hold exactly one kernel.
    """
    entries = re.split(r"\.entry\b", text)
    if len(entries) != 2:
        raise ValueError(f"ptx: expected one kernel, got {len(entries) - 1}")
    labels: dict[str, int] = {}
    found: list[tuple[str, str, str]] = []
    for line in entries[1].splitlines():
        line = line.partition("//")[0].strip()
        if label := _LABEL.match(line):
            labels[label[1]] = len(found)
        elif statement := _STATEMENT.match(line):
            found.append((statement[1] or "", statement[2], statement[3].strip()))
    return [
        Instruction(address, predicate, *_as_jump(opcode, operands, labels))
        for address, (predicate, opcode, operands) in enumerate(found)
    ]


def _as_jump(opcode: str, operands: str, labels: dict[str, int]) -> tuple[str, str]:
    """Return the opcode and operands, with those of a jump or a return as `control_flow` knows them."""
    name = opcode.partition(".")[0]
    if name == "bra":
        return "BRA", hex(labels[operands])
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
