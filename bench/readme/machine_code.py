"""The table of compiled kernels, from the summaries that bench.codegen writes."""

from __future__ import annotations

from pathlib import Path

from .markdown import load_all, table


def of_versions(results: Path, pattern: str) -> str:
    """One row for each version of Triton, kernel and architecture."""
    contents = load_all(results, pattern)
    heading = (
        *("Triton", "kernel", "target", "launches", "registers", "with local memory", "fewer programs than planned"),
        *("polls", "arrivals", "releases", "fences", "violations"),
    )
    rows = [
        (
            content["triton"],
            entry["kernel"],
            f"sm_{entry['arch']}",
            entry["launches"],
            f"{entry['registers']['least']} - {entry['registers']['most']}",
            *(entry[name] for name in ("with_local_memory", "below_plan", "polls", "arrivals", "releases", "fences")),
            len(entry["violations"]),
        )
        for content in contents
        for entry in content["results"]
    ]
    commits = (f"Triton {content['triton']}: commit {content['commit']}" for content in contents)
    caption = (
        "Counted in PTX and machine code by `bench.codegen`; nothing was run. Registers of a thread. Polls, arrivals, "
        "releases and fences are the least of all launches. "
        f"{'; '.join(commits)}."
    )
    return table(heading, rows, caption)
