"""Finished runs: read from their folders, and grouped if they differ in the seed only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data.known import same_data_name
from oekd_fast.reporting.run_files import ReportError, check_inside, read_config, read_histories, read_summary


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
        """Return the weight files of all "students" or "baselines", in order; an empty list if one is missing.

        Raises:
            ReportError: a file leads out of the run folder by a link.
        """
        paths = [self.path / kind / f"student_{student['index']}.safetensors" for student in self.summary["students"]]
        if not all(path.is_file() for path in paths):
            return []
        for path in paths:
            for file in (path, path.with_suffix(".json")):
                check_inside(file, self.path)
        return paths


def read_run(path: Path) -> Run:
    """Read the run folder `path`.

    Raises:
        ReportError: `path` is not a run folder, the run is not finished, or a file is damaged.
        OSError: a file cannot be read.
    """
    if not path.is_dir():
        raise ReportError(f"runs: expected folders of finished runs, got {path}, which is not a folder")
    if not (path / "config.json").is_file():
        raise ReportError(f"runs: expected run folders, got {path}, which has no config.json")
    if not (path / "summary.json").is_file():
        raise ReportError(
            f"runs: expected finished runs, got {path}, which has no summary.json; train with --resume to finish it"
        )
    config = read_config(path)
    summary, histories = read_summary(path, config), read_histories(path, config)
    selected, trained = summary["selected_epoch"], len(histories["ensemble"])
    if selected > trained:  # a run that stopped early has fewer epochs than its config
        raise ReportError(
            f"runs: {path / 'summary.json'}: selected_epoch: expected an epoch of 1 to {trained}, got {selected}"
        )
    if "validation" not in histories["ensemble"][selected - 1]:
        raise ReportError(
            f"runs: {path / 'summary.json'}: selected_epoch: expected an epoch that was evaluated, got {selected}"
        )
    return Run(path, config, summary, histories)


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
    """Group runs that differ in the seed only, in the order in which they were given.

    Several names of one data set, such as spellings of the path of a folder, are no difference.
    """
    members: list[list[Run]] = []
    for run in runs:
        same = next((group for group in members if not _differences(run, group[0])), None)
        if same is None:
            members.append([run])
        else:
            same.append(run)
    first: dict[str, Run] = {}
    groups = []
    for same in members:
        title = same[0].title
        groups.append(Group(title, tuple(same), _differences(same[0], first.setdefault(title, same[0]))))
    return groups


def _differences(run: Run, reference: Run) -> tuple[str, ...]:
    """Return how the training of `run` differs from that of `reference`, beside the seed."""
    expected = reference.config.training_fields()
    return tuple(
        f"{name} {value} (not {expected[name]})"
        for name, value in run.config.training_fields().items()
        if name != "seed"
        and value != expected[name]
        and not (name == "dataset" and same_data_name(expected[name], value))
    )
