"""The latencies of a family as a summary holds them, by setting, and what is said about them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oekd_fast.figures.latency import LatencyCurve
from oekd_fast.latency.result import Latency, LatencyReport, Setting, preferred


@dataclass(frozen=True)
class FamilyLatency:
    """Latencies of all students and of the ensemble.

    Args:
        students: for each student, its latency by setting. All students have the same settings.
        ensemble: that of the ensemble by setting; settings may be missing.
    """

    students: tuple[dict[Setting, Latency], ...]
    ensemble: dict[Setting, Latency]

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> FamilyLatency | None:
        """Return the latencies in `summary`, which have been checked; None if it has none."""
        ensemble = summary.get("ensemble") or {}
        students, (of_ensemble,) = (
            [list(map(Latency.from_dict, network.get("latency") or [])) for network in networks]
            for networks in (summary["students"], [ensemble])
        )
        return cls._of(students, of_ensemble)

    @classmethod
    def of_report(cls, report: LatencyReport) -> FamilyLatency | None:
        """Return the latencies of a measurement; None if it has none."""
        return cls._of(report.students, report.ensemble)

    @classmethod
    def _of(cls, students: Sequence[Sequence[Latency]], ensemble: Sequence[Latency]) -> FamilyLatency | None:
        *of_students, of_ensemble = ({row.setting: row for row in rows} for rows in (*students, ensemble))
        latency = cls(tuple(of_students), of_ensemble)
        return latency if latency.settings else None

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Settings in which all students were measured, in the order of the summary."""
        return tuple(setting for setting in self.students[0] if all(setting in rows for rows in self.students))

    @property
    def preferred(self) -> Setting:
        """The setting that is shown where there is room for one."""
        return preferred(self.settings)

    def at(self, setting: Setting) -> list[Latency]:
        """Return the latency of each student in `setting`, one of `settings`."""
        return [rows[setting] for rows in self.students]

    @property
    def batches(self) -> dict[int, list[Setting]]:
        """The settings by the size of their batch, ascending."""
        return {
            batch: [setting for setting in self.settings if setting.batch == batch]
            for batch in sorted({setting.batch for setting in self.settings})
        }

    def curves(self, settings: Sequence[Setting]) -> list[LatencyCurve]:
        """Return the curve of each of `settings` in a figure."""
        return [
            LatencyCurve(
                label=setting.place,
                medians=[latency.median_ms for latency in self.at(setting)],
                p95s=[latency.p95_ms for latency in self.at(setting)],
                not_faster=[bool(latency.not_faster_than) for latency in self.at(setting)],
                ensemble=self.ensemble[setting].median_ms if setting in self.ensemble else None,
            )
            for setting in settings
        ]

    def cells(self, setting: Setting) -> list[str]:
        """Return the median of each student in `setting` for a column of a table."""
        return [latency.text for latency in self.at(setting)]

    def remarks(self, setting: Setting) -> Iterator[str]:
        """Yield a sentence for each student that is not measurably faster than a larger one in `setting`."""
        for number, latency in enumerate(self.at(setting), start=1):
            if latency.not_faster_than:
                yield f"Student {number} is not measurably faster than {_students(latency.not_faster_than)}"


def _students(numbers: Sequence[int]) -> str:
    """Return "student 1", "students 1 and 2" or "students 1, 2 and 3"."""
    *first, last = map(str, numbers)
    return f"students {', '.join(first)} and {last}" if first else f"student {last}"
