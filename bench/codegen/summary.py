"""The compiled kernels in a few numbers each, small enough to be committed."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby


def summary(rows: Iterable[dict]) -> list[dict]:
    """Return an entry for each kernel and architecture, from the rows of ``--json``.

    An entry holds the number of launches, the range of their registers, how many of them use local memory or fit a
    multiprocessor fewer times than planned, and how many polls, arrivals, releases and fences each launch has at least.
    """
    groups = groupby(sorted(rows, key=_group), key=_group)
    return [_entry(kernel, arch, list(launches)) for (kernel, arch), launches in groups]


def _group(row: dict) -> tuple[str, int]:
    return f"{row['case'].split()[0]} {row['resources']['kernel']}", row["resources"]["arch"]


def _entry(kernel: str, arch: int, rows: list[dict]) -> dict:
    found = [row["resources"] for row in rows]
    registers = [r["registers"] for r in found]
    order = ("polls", "arrivals", "releases")
    return {
        "kernel": kernel,
        "arch": arch,
        "launches": len(rows),
        "registers": {"least": min(registers), "most": max(registers)},
        "with_local_memory": sum(bool(r["stack"] or r["local"] or r["code"]["local_loads"]) for r in found),
        "below_plan": sum(row["resources"]["occupancy"]["blocks"] < row["resident"] for row in rows),
        **{what: min(r["synchronisation"][what] for r in found) for what in order},
        "fences": min(r["code"]["fences"] for r in found),
        "violations": [f"{row['case']}: {what}" for row in rows for what in row["violations"]],
    }
