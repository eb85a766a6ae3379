"""What can be chosen from a run: each student, and the ensemble of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from oekd_fast.latency.family import FamilyLatency
from oekd_fast.latency.result import Latency, Setting
from oekd_fast.reporting.finished_runs import Run


@dataclass(frozen=True)
class Candidate:
    """A student or the ensemble of a finished run.

    Args:
        index: number of the student, from 1; None for the ensemble.
        parameters: number of parameters; those of the base count once in the ensemble.
        file_bytes: size of the weights in bytes; None if it is unknown.
        validation_accuracy, test_accuracy: in percent, at the epoch that the run selected.
        latency: latency in the setting of the choice; None if it was not measured.
    """

    index: int | None
    parameters: int
    file_bytes: int | None
    validation_accuracy: float
    test_accuracy: float
    latency: Latency | None = None

    @property
    def name(self) -> str:
        """ "student 3", or "ensemble"."""
        return "ensemble" if self.index is None else f"student {self.index}"

    @property
    def export_name(self) -> str:
        """The name by which `oekd_fast.reporting.exported_run.networks_of` loads it: "3", or "ensemble"."""
        return "ensemble" if self.index is None else str(self.index)

    @property
    def median_ms(self) -> float | None:
        """Median latency in milliseconds; None if it was not measured."""
        return None if self.latency is None else self.latency.median_ms


def candidates_of(
    run: Run, latency: FamilyLatency | None, setting: Setting | None, ensemble: Mapping[str, Any] | None
) -> list[Candidate]:
    """Return the students of `run` in order, then the ensemble.

    Args:
        latency: latencies of the family; None if they were not measured.
        setting: one of ``latency.settings``; None without latencies.
        ensemble: ``parameters`` and ``file_bytes`` of the ensemble; None leaves it out.
    """
    summary = run.summary
    validation = run.histories["ensemble"][summary["selected_epoch"] - 1]["validation"]
    of_setting = [None] * len(summary["students"]) if latency is None else latency.at(setting)
    files = run.saved("students")
    found = [
        Candidate(
            student["index"],
            student["parameters"],
            student.get("file_bytes") or (files[j].stat().st_size if files else None),
            accuracy,
            student["accuracy"],
            own,
        )
        for j, (student, accuracy, own) in enumerate(
            zip(summary["students"], validation["accuracy"], of_setting, strict=True)
        )
    ]
    if ensemble is not None:
        found.append(
            Candidate(
                None,
                ensemble["parameters"],
                ensemble.get("file_bytes"),
                validation["ensemble_accuracy"],
                summary["ensemble_accuracy"],
                None if latency is None else latency.ensemble.get(setting),
            )
        )
    return found
