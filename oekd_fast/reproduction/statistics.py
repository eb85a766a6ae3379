"""Mean and spread over seeds of what the summaries of runs say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from oekd_fast.common.spread import spread

# How an epoch is chosen, and how its fields of summary.json begin.
MEASURES = {"selected": "", "last_epoch": "last_epoch_", "best_test": "best_test_"}


def accuracies(summaries: Sequence[Mapping[str, Any]], measure: str) -> dict[str, Any] | None:
    """Accuracies in percent of all runs by one of `MEASURES`, None unless all have them.

    Returns:
        ``family`` and, with baselines, ``baseline``, ``gain_points`` and ``gain_percent`` (of the baseline; None where
        one is 0), each a `Spread` as a dict a student; ``ensemble``, one. Gains are those of each seed's
        family over the same seed's baseline. ``ensemble`` is None unless all runs know theirs: a run of one network may
        have none that goes with the epoch.
    """
    prefix = MEASURES[measure]
    family = [[student[f"{prefix}accuracy"] for student in _students(s, prefix)] for s in summaries]
    alone = [[student[f"{prefix}baseline_accuracy"] for student in _students(s, prefix)] for s in summaries]
    ensemble = [summary.get(f"{prefix}ensemble_accuracy") for summary in summaries]
    if not summaries or any(None in row for row in family):
        return None
    result: dict[str, Any] = {
        "family": _by_student(family),
        "ensemble": None if None in ensemble else _as_dict(ensemble),
    }
    if not any(None in row for row in alone):
        pairs = [
            [(row[j], base[j]) for row, base in zip(family, alone, strict=True)] for j in range(len(result["family"]))
        ]
        result["baseline"] = _by_student(alone)
        result["gain_points"] = [_as_dict([a - b for a, b in pair]) for pair in pairs]
        result["gain_percent"] = [
            _as_dict([100.0 * (a - b) / b for a, b in pair]) if all(b for _, b in pair) else None for pair in pairs
        ]
    return result


def _students(summary: Mapping[str, Any], prefix: str) -> list[dict[str, Any]]:
    """Those of `summary`, with None for what a run from before best test epochs were known does not say."""
    missing = {f"{prefix}accuracy": None, f"{prefix}baseline_accuracy": None}
    return [missing | student for student in summary["students"]]


def _by_student(rows: Sequence[Sequence[float]]) -> list[dict[str, float | None]]:
    return [_as_dict(column) for column in zip(*rows, strict=True)]


def _as_dict(values: Sequence[float]) -> dict[str, float | None]:
    return spread(values)._asdict()
