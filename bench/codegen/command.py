"""Compare compiled kernels with what they need: registers, spills, width of accesses, exponentials, synchronisation.

    python -m bench.codegen [--arch 80 90 100] [--only SUBSTRING] [--json FILE] [--summary FILE]

No GPU is needed and nothing is timed. The exit status is 1 if a kernel does worse than its case demands; the violations
are listed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import triton

from oekd_fast.common.machine import machine

from .. import result_file
from .kernel_cases import Case, Demand, cases
from .sass import ARCHS, Resources, inspect
from .summary import summary

PROCESSES = 2
SPILL_FREE = (90,)  # local memory is a violation on these architectures, and only shown for others


@dataclass(frozen=True)
class Row:
    """One compiled launch of a case; `launch` counts from 1."""

    case: str
    launch: int
    launches: int
    resources: Resources
    demand: Demand
    resident: int  # programs that the launch plans for a multiprocessor

    def violations(self) -> Iterator[str]:
        r, d = self.resources, self.demand
        if r.spills and r.arch in SPILL_FREE:
            instructions = f"{r.code.local_loads} LDL, {r.code.local_stores} STL"
            yield f"local memory: {r.stack + r.local} bytes a thread, {instructions}"
        if r.occupancy.blocks == 0:
            yield f"does not fit a multiprocessor: {r.occupancy.limit}"
        elif r.occupancy.blocks < self.resident:
            yield f"programs on a multiprocessor: {r.occupancy.blocks} of {self.resident} planned ({r.occupancy.limit})"
        for what, wide, need in (
            ("loads", r.hot.bytes_loaded(d.vector), d.loaded),
            ("stores", r.hot.bytes_stored(d.vector), d.stored),
        ):
            if wide * r.threads < need:
                yield f"{what}: {wide * r.threads} of {need} bytes in accesses of {8 * d.vector} bit or more"
        if d.segment and r.segment is not None and r.segment < d.segment:
            yield f"segments: {r.segment} of {d.segment} neighbouring bytes"
        if self.exponentials > d.exponentials:
            yield f"exponentials: {self.exponentials}, {d.exponentials} needed"
        s = r.synchronisation
        for what, there, need in (
            ("polls", s.polls, d.polls),
            ("arrivals", s.arrivals, d.arrivals),
            ("releases", s.releases, d.releases),
            ("fences", r.code.fences, d.arrivals + d.releases),
        ):
            if there < need:
                yield f"synchronisation: {there} of {need} {what}"
        yield from (f"synchronisation: {fault}" for fault in s.faults)

    @property
    def exponentials(self) -> int:
        """Exponentials of all threads of a program, executing each instruction once."""
        return self.resources.code.exponentials * self.resources.threads

    def line(self) -> str:
        r, d, s = self.resources, self.demand, self.resources.synchronisation
        loads, stores = _wide(r.hot.loads, d.vector), _wide(r.hot.stores, d.vector)
        return (
            f"{self.case:<54} sm_{r.arch:<3} {self.launch}/{self.launches}  {r.registers:>3} reg x {r.threads:<4} "
            f"stack {r.stack:<4} local {r.local:<3} shared {r.shared:<6} "
            f"{8 * d.vector:>3} bit: loads {loads:<7} stores {stores:<7} "
            f"segment {r.segment or '-':>3} EX2 {self.exponentials:>6}/{d.exponentials:<6} "
            f"{r.code.instructions:>5} instr  "
            f"order {s.polls}+{s.arrivals}+{s.releases}, {r.code.fences} fences  "
            f"{r.occupancy.blocks:>2} blocks, {100 * r.occupancy.share:3.0f} % of warps ({r.occupancy.limit})"
        )

    def as_dict(self) -> dict:
        return {**asdict(self), "violations": list(self.violations())}


def _wide(accesses: dict[int, int], width: int) -> str:
    """Return "the accesses of at least `width` bytes / all accesses"."""
    return f"{sum(n for bytes_, n in accesses.items() if bytes_ >= width)}/{sum(accesses.values())}"


def rows_of(name: str, arch: int, all_cases: Callable[[], list[Case]]) -> list[Row]:
    """Compile a case, given by name since a case itself cannot be sent to another process."""
    case = next(case for case in all_cases() if case.name == name)
    launches = case.build()
    return [
        Row(case.name, number, len(launches), inspect(launch, arch), case.demand(launch), launch.resident)
        for number, launch in enumerate(launches, start=1)
    ]


def main(all_cases: Callable[[], list[Case]] = cases) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.codegen", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", type=int, nargs="+", choices=ARCHS, default=ARCHS, help="compute capability x 10")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[""],
        metavar="SUBSTRING",
        help="compile only cases whose name contains one of the substrings",
    )
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--summary", type=Path, help="write a few numbers for each kernel to this file")
    arguments = parser.parse_args()

    names = [case.name for case in all_cases() if any(part in case.name for part in arguments.only)]
    for part in arguments.only:
        if not any(part in name for name in names):
            parser.error(f"--only: no case has {part!r} in its name")
    if os.environ.pop("TRITON_INTERPRET", None):
        print("TRITON_INTERPRET is ignored: kernels are compiled.", file=sys.stderr)
    print(
        "Counts from the machine code, not measurements. Loads and stores: accesses of full width / all, in loops with "
        "exponentials. Segment: neighbouring bytes of memory that a warp accesses at once. EX2: exponentials of a "
        "program, each instruction once / needed. Order: polls + arrivals + releases."
    )
    rows: list[Row] = []
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        pending = [pool.submit(rows_of, name, arch, all_cases) for name in names for arch in arguments.arch]
        for done in pending:
            for row in done.result():
                rows.append(row)
                print(row.line(), flush=True)

    described = [row.as_dict() for row in rows]
    for file, results in ((arguments.json, described), (arguments.summary, summary(described))):
        if file:
            report = {
                "what": "kernels as compiled; nothing was run",
                "triton": triton.__version__,
                "commit": machine()["commit"],
                "results": results,
            }
            result_file.write(file, report)
    wrong = [f"{row.case} sm_{row.resources.arch}: {what}" for row in rows for what in row.violations()]
    print("\n".join([f"{len(wrong)} violations", *wrong] if wrong else ["no violations"]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
