"""What the students of a finished run cost in use: size of their files, and latency."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from oekd_fast.common.text import print_line, reason_of
from oekd_fast.family.saved import load_student
from oekd_fast.latency.measure import SECONDS, measure_students
from oekd_fast.latency.result import LatencyReport
from oekd_fast.runs.tasks import PhaseResult


def with_file_sizes(summary: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return `summary` with the size of each student's file in `folder`, in bytes."""
    students = [
        student | {"file_bytes": _weights(folder, student["index"]).stat().st_size} for student in summary["students"]
    ]
    return summary | {"students": students}


def with_latency(
    summary: dict[str, Any],
    folder: Path,
    family: PhaseResult,
    device: torch.device,
    console: Console,
    *,
    seconds: float = SECONDS,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Return `summary` with the latency of the students saved in `folder` and of their ensemble.

    A measurement that fails does not end the run: the summary is then returned without latency, after a line on
    `console`.

    Args:
        family: result of the phase that trained the students.
        device, seconds, stopping: see `measure_students`.
    """
    print_line(console, f"Measuring latency, at most {seconds:g} s (--latency off skips it)")
    try:
        architecture = family.ensemble.architecture
        students = [load_student(_weights(folder, student["index"]), architecture) for student in summary["students"]]
        gate = family.ensemble.gate
        report = measure_students(
            students,
            [student["flops"] for student in summary["students"]],
            None if gate is None else copy.deepcopy(gate).cpu().eval(),
            device=device,
            seconds=seconds,
            stopping=stopping,
        )
    except Exception as error:  # networks of users, and whatever a runtime raises; the training is complete
        print_line(console, f"Latency could not be measured ({reason_of(error)}); the other results are complete")
        return summary
    return summary | latency_fields(summary, report)


def latency_fields(summary: dict[str, Any], report: LatencyReport) -> dict[str, Any]:
    """Return the fields of summary.json that `report` changes."""
    students = [
        student | {"latency": [row.as_dict() for row in rows]}
        for student, rows in zip(summary["students"], report.students, strict=True)
    ]
    ensemble = summary["ensemble"]
    if ensemble is not None:
        ensemble = ensemble | {"latency": [row.as_dict() for row in report.ensemble]}
    return {"students": students, "ensemble": ensemble, "latency": report.facts()}


def _weights(folder: Path, index: int) -> Path:
    return folder / f"student_{index}.safetensors"
