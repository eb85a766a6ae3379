"""Tables of the comparison of recipes by bench.evidence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oekd_fast.common.spread import spread

from ..evidence.arms import ARMS, Arm
from .markdown import EMPTY, load, machines, table

STUDENTS = range(5)


def recipes(results: Path, file: str) -> str:
    """Each arm with its options and what it is expected to do, also those without a result in `file`."""
    if load(results, file) is None:
        return ""
    rows = [(f"`{name}`", _options(arm), arm.hypothesis) for name, arm in ARMS.items()]
    return table(("recipe", "options", "expected"), rows, "Options that differ from those that all recipes share.")


def outcomes(results: Path, file: str) -> str:
    """Accuracies by recipe, with the students alone where they were trained."""
    report = load(results, file)
    if report is None:
        return ""
    families: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    alone: dict[tuple[int, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for entry in report["results"]:
        group = entry["epochs"], entry["arm"]
        if entry["student"] is None:
            families[group].append(entry)
        else:
            alone[group][entry["student"]] += entry["accuracy"]
    rows = []
    groups = {*families, *alone}
    for group in sorted(groups, key=lambda group: (group[0], list(ARMS).index(group[1]))):
        (epochs, name), entries, of_student = group, families[group], alone[group]
        if entries:
            students = [[entry["accuracy"][j] for entry in entries] for j in STUDENTS]
            ensemble = str(spread([entry["ensemble"] for entry in entries]))
            rows.append((f"`{name}`", epochs, len(entries), *_cells(students), ensemble))
        if of_student:
            seeds = max(map(len, of_student.values()))
            cells = _cells([of_student[j + 1] for j in STUDENTS])
            rows.append((f"`{name}`, each alone", epochs, seeds, *cells, EMPTY))
    what = report["what"][0].upper() + report["what"][1:]
    caption = f"{what}. Mean ± sample standard deviation over seeds. {machines(report['results'])}."
    return table(("recipe", "epochs", "seeds", *(f"student {j + 1}" for j in STUDENTS), "ensemble"), rows, caption)


def _cells(values: Sequence[Sequence[float]]) -> list[str]:
    return [str(spread(of_student)) if of_student else EMPTY for of_student in values]


def _options(arm: Arm) -> str:
    fields: Mapping[str, Any] = {**arm.fields, **({"kd_schedule": "sigmoid"} if arm.ramped else {})}
    return ", ".join(f"`{name}` {_value(value)}" for name, value in fields.items())


def _value(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
