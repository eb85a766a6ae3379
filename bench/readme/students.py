"""The table of students in ONNX Runtime, from results of bench.students.widths."""

from __future__ import annotations

from pathlib import Path

from ..students.order import order
from .markdown import load_all, machine, table


def latencies(results: Path, pattern: str) -> str:
    """Every setting of every network, with quartiles: a row for each divisor of channels."""
    found = load_all(results, pattern)
    rows = [
        (
            f"{result['model']}, {result['image_size']} px",
            setting["threads"],
            setting["batch"],
            "int(c r)" if divisor == "1" else f"multiples of {divisor}",
            *map(_with_quartiles, timings),
            order(timings),
        )
        for result in found
        for setting in result["results"]
        for divisor, timings in setting["milliseconds"].items()
    ]
    students = max((len(row) for row in rows), default=5) - 5
    heading = ("network", "threads", "batch", "channels", *range(1, students + 1), "each faster")
    where = "; ".join(
        dict.fromkeys(f"{machine(r['machine'])}, ONNX Runtime {r['machine']['onnxruntime']}" for r in found)
    )
    caption = (
        "Milliseconds a call, median [quartiles], of students 1 to 5. Each faster: whether each student is faster than "
        f"the next larger one; close if their quartiles overlap. {where}."
    )
    return table(heading, rows, caption)


def _with_quartiles(timing: dict) -> str:
    median, lower, upper = (f"{timing[name]:.3g}" for name in ("median", "lower", "upper"))
    return f"{median} [{lower}, {upper}]"
