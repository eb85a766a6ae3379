"""Finished runs: read from their folders, and grouped if they differ in the seed only."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oekd_fast.common.checked_json import load_checked
from oekd_fast.common.files import read_regular
from oekd_fast.config.train_config import TrainConfig


class ReportError(ValueError):
    """A folder cannot be reported; the message names it and what is missing."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        path: the run folder.
        config: config of the training; fields that are missing in config.json have their defaults.
        summary: content of summary.json.
        histories: lines of metrics.jsonl by phase, in order.
    """

    path: Path
    config: TrainConfig
    summary: dict[str, Any]
    histories: dict[str, list[dict[str, Any]]]

    @property
    def title(self) -> str:
        """Model, number of students, data set, and the objective unless it is the paper's."""
        objective = "" if self.config.objective == "oekd" else f", {self.config.objective}"
        return f"{self.config.model} x {len(self.summary['students'])} on {self.summary['dataset']}{objective}"

    @property
    def has_baselines(self) -> bool:
        """Whether the students were also trained alone."""
        return self.summary["students"][0]["baseline_accuracy"] is not None

    def saved(self, kind: str) -> list[Path]:
        """Return the weight files of all "students" or "baselines", in order; an empty list if one is missing."""
        paths = [self.path / kind / f"student_{student['index']}.safetensors" for student in self.summary["students"]]
        return paths if all(path.is_file() for path in paths) else []


def read_run(path: Path) -> Run:
    """Read the run folder `path`.

    Raises:
        ReportError: `path` is not a run folder, the run is not finished, or a file is damaged.
    """
    if not path.is_dir():
        raise ReportError(f"runs: expected folders of finished runs, got {path}, which is not a folder")
    if not (path / "config.json").is_file():
        raise ReportError(f"runs: expected run folders, got {path}, which has no config.json")
    if not (path / "summary.json").is_file():
        raise ReportError(
            f"runs: expected finished runs, got {path}, which has no summary.json; train with --resume to finish it"
        )
    stored = _read_json(path / "config.json")
    try:
        config = TrainConfig.from_dict(stored | {"output_dir": path})
    except (TypeError, ValueError) as error:
        raise ReportError(f"runs: {path / 'config.json'} is damaged ({error})") from error
    summary = _read_json(path / "summary.json")
    _check_summary(summary, config, path / "summary.json")
    return Run(path, config, summary, _read_histories(path / "metrics.jsonl", config.epochs))


def _read_histories(file: Path, epochs: int) -> dict[str, list[dict[str, Any]]]:
    histories = defaultdict(list)
    if not file.is_file():
        raise ReportError(f"runs: {file} is missing")
    for number, line in enumerate(read_regular(file).splitlines(), start=1):
        try:
            entry = load_checked(line)
            histories[entry["phase"]].append(entry)
        except (ValueError, KeyError, TypeError) as error:
            raise ReportError(f"runs: {file}, line {number}, is damaged ({error})") from error
    for phase in {"ensemble", *(name for name in histories if name.startswith("baseline_"))}:
        if len(histories[phase]) != epochs:
            raise ReportError(
                f"runs: {file}: expected {epochs} lines of the phase {phase!r}, got {len(histories[phase])}"
            )
    return dict(histories)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return load_checked(read_regular(file))
    except ValueError as error:
        raise ReportError(f"runs: {file} is damaged ({error})") from error


def _check_summary(summary: dict[str, Any], config: TrainConfig, file: Path) -> None:
    needed = ("dataset", "students", "ensemble_accuracy", "selected_epoch", "test_images", "seconds", "versions")
    if missing := [name for name in needed if name not in summary]:
        raise ReportError(f"runs: {file} lacks {', '.join(missing)}; it was written by an older version")
    count = 1 if config.family_objective.alone else config.num_students
    if len(summary["students"]) != count:
        raise ReportError(f"runs: {file}: expected {count} students, got {len(summary['students'])}")
    of_student = ("index", "parameters", "relative_size", "flops", "accuracy", "baseline_accuracy", "relative_gain")
    if missing := [name for name in of_student if any(name not in student for student in summary["students"])]:
        raise ReportError(f"runs: {file}: students lack {', '.join(missing)}; it was written by an older version")


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed only; the report averages them.

    Args:
        title: title of the runs.
        runs: the runs, in the order in which they were given.
        differences: fields that differ from the first group with the same title, so that readers can tell them apart.
    """

    title: str
    runs: tuple[Run, ...]
    differences: tuple[str, ...] = ()


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Group runs that differ in the seed only, in the order in which they were given."""
    members: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        members[json.dumps(_protocol(run), sort_keys=True)].append(run)
    first: dict[str, Run] = {}
    groups = []
    for same in members.values():
        title = same[0].title
        reference = _protocol(first.setdefault(title, same[0]))
        differences = tuple(
            f"{name} {value} (not {reference[name]})"
            for name, value in _protocol(same[0]).items()
            if value != reference[name]
        )
        groups.append(Group(title, tuple(same), differences))
    return groups


def _protocol(run: Run) -> dict[str, Any]:
    return {name: value for name, value in run.config.training_fields().items() if name != "seed"}
