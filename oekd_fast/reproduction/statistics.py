"""Means and standard deviations over seeds of the accuracies of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from oekd_fast.common.spread import spread

# Rules by which an epoch is chosen, with the prefix of their fields in summary.json.
MEASURES = {"selected": "", "last_epoch": "last_epoch_", "best_test": "best_test_"}


def accuracies(summaries: Sequence[Mapping[str, Any]], measure: str) -> dict[str, Any] | None:
    """Average accuracies in percent over runs.

    Args:
        summaries: contents of summary.json of each run.
        measure: key of `MEASURES`.

    Returns:
        None unless all runs have these accuracies, otherwise a dict with the entries

        - ``family``, and with baselines ``baseline``, ``gain_points`` and ``gain_percent``: a list with one `Spread`
          (as a dict) per student. Gains compare each run's family with the same run's baseline. An entry of
          ``gain_percent`` is None if a baseline is 0.
        - ``ensemble``: a `Spread` (as a dict), or None unless all runs have it. Objectives that train one network may
          have no ensemble of an epoch.
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
    """Return the students of `summary`, with None for accuracies that older versions did not write."""
    missing = {f"{prefix}accuracy": None, f"{prefix}baseline_accuracy": None}
    return [missing | student for student in summary["students"]]


def _by_student(rows: Sequence[Sequence[float]]) -> list[dict[str, float | None]]:
    return [_as_dict(column) for column in zip(*rows, strict=True)]


def _as_dict(values: Sequence[float]) -> dict[str, float | None]:
    return spread(values)._asdict()
