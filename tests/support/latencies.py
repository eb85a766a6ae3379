"""Summaries with chosen latencies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from oekd_fast.latency.result import Latency, Setting

EAGER_1, EAGER_64 = Setting("eager", "cpu", 2, 1), Setting("eager", "cpu", 2, 64)
ONNX_1, ONNX_64 = Setting("onnx", "cpu", 2, 1), Setting("onnx", "cpu", 2, 64)
SINGLE_1 = Setting("eager", "cpu", 1, 1)


def entry(setting: Setting, median: float, *larger: int) -> dict[str, Any]:
    """An entry of summary.json; the 95th percentile is twice the median."""
    return Latency(setting, median, 2 * median, 30, larger).as_dict()


def with_latencies(
    summary: Mapping[str, Any],
    students: Sequence[Sequence[dict[str, Any]]],
    ensemble: Sequence[dict[str, Any]] = (),
    sizes: Sequence[int] = (1_100_000, 490_000, 130_000, 40_000, 9_000),
) -> dict[str, Any]:
    """Return `summary` with the latencies of each student and of the ensemble."""
    changed = [
        student | {"latency": list(rows), "file_bytes": size}
        for student, rows, size in zip(summary["students"], students, sizes, strict=False)
    ]
    of_ensemble = {"parameters": 400_000, "flops": 10**7, "file_bytes": 1_600_000, "latency": list(ensemble)}
    facts = {
        "machine": {"processor": "a <processor>", "gpu": None, "torch": "2.13", "threads": 2},
        "image_shape": [1, 8, 8],
        "seconds": 3.5,
        "notes": ["eager, 1 thread, batch 64: not measured, since it takes more than 20 s"],
    }
    return dict(summary) | {"students": changed, "ensemble": of_ensemble, "latency": facts}
