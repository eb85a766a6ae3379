"""Result files, and the Markdown that the tables have in common."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

EMPTY = "-"  # a cell without a value


def load(results: Path, file: str) -> dict | None:
    """Return a result file, or None if nothing was measured for it yet."""
    path = results / file
    return json.loads(path.read_bytes()) if path.exists() else None


def load_all(results: Path, pattern: str) -> list[dict]:
    """Return the result files in the folder `results` whose name matches `pattern`, by name."""
    return [json.loads(file.read_bytes()) for file in sorted(results.glob(pattern))]


def table(heading: Iterable[str], rows: Iterable[Iterable], caption: str) -> str:
    """Return a Markdown table with `caption` below it, or an empty string if there are no rows."""
    rows, heading = list(rows), list(heading)
    if not rows:
        return ""
    lines = [heading, ["---:"] * len(heading), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines) + f"\n{caption}\n"


def machines(results: Iterable[dict]) -> str:
    """Name the machines of results, each with the commits that were measured on it, without repetitions."""
    commits: dict[str, dict[str, None]] = {}
    for where in (result["machine"] for result in results):
        commits.setdefault(_machine(where), {})[where["commit"]] = None
    return "; ".join(
        f"{name}, {'commit' if len(of_machine) == 1 else 'commits'} {', '.join(of_machine)}"
        for name, of_machine in commits.items()
    )


def machine(where: dict) -> str:
    return machines([{"machine": where}])


def _machine(where: dict) -> str:
    threads = f"{where['threads']} thread" + ("" if where["threads"] == 1 else "s")
    return f"{where['processor']}, {threads}, {where['cpu_capability']}, torch {where['torch']}"


def milliseconds(value: float) -> str:
    """Format a time with three significant digits, or as an integer from 1000 on."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def percent(value: float | None) -> str:
    return EMPTY if value is None else f"{value:.2f}"
