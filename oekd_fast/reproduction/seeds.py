"""Runs of a reproduction: find those that are finished and train the others."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from oekd_fast.common.checked_json import load_checked
from oekd_fast.common.files import read_regular
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.distributed.agreement import failing_together
from oekd_fast.distributed.world import ALONE, World
from oekd_fast.runs.interrupt import Interrupted, StopRequest
from oekd_fast.runs.run import train
from oekd_fast.runs.run_folder import RunFolder


def seed_config(config: TrainConfig, folder: Path, seed: int) -> TrainConfig:
    """Return `config` for the run of `seed` in ``folder/seed-<seed>``, which resumes an unfinished run."""
    return replace(config, seed=seed, output_dir=folder / f"seed-{seed}", resume=True)


def finished(config: TrainConfig) -> dict[str, Any] | None:
    """Return the summary of the run of `config`; None if there is no run, it is not complete, or its data may differ.

    `config.resume` has to be set.

    Raises:
        RunFolderError: the folder holds a run with another configuration; the message names the fields that differ.
    """
    folder = RunFolder(config)
    # A run whose data set is in another folder now is resumed, which compares the data.
    if not folder.config_file.exists() or not folder.names_the_same_data():
        return None
    try:
        summary = load_checked(read_regular(folder.summary_file))
        return summary if _is_complete(summary, config) and _has_students(folder, summary, config) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_complete(summary: dict[str, Any], config: TrainConfig) -> bool:
    student_keys = ["accuracy", "last_epoch_accuracy"]
    if config.baseline:
        student_keys += ["baseline_accuracy", "last_epoch_baseline_accuracy"]
    numbers = [student[key] for student in summary["students"] for key in student_keys]
    numbers.append(summary["ensemble_accuracy"])
    if config.objective != "born_again":  # whose ensemble exists for selected epochs only
        numbers.append(summary["last_epoch_ensemble_accuracy"])
    return len(numbers) > 2 and summary["epochs"] == config.epochs and all(map(math.isfinite, numbers))


def _has_students(folder: RunFolder, summary: dict[str, Any], config: TrainConfig) -> bool:
    """Return whether the students were saved, which happens after the summary was."""
    kinds = (folder.students, folder.baselines) if config.baseline else (folder.students,)
    names = [f"student_{student['index']}.json" for student in summary["students"]]
    return all((kind / name).is_file() for kind in kinds for name in names)


def run(config: TrainConfig, console: Console, world: World = ALONE) -> dict[str, Any]:
    """Return the summary of the run of `config`, after training it unless it is finished. Collective in `world`.

    Raises:
        RunFolderError: see `finished`.
        Interrupted: SIGINT or SIGTERM arrived, even if this run was completed.
        Other errors: see `train`.
    """
    summary = None
    with failing_together(world):
        if world.is_main:
            summary = finished(config)
    if world.size > 1:
        summary = json.loads(world.from_main(json.dumps(summary).encode()))
    if summary is None:
        stop = StopRequest()
        summary = train(config, console, stop)
        if stop.signal_number is not None:
            raise Interrupted(f"{config.run_folder}: finished, stopped before the next run", stop.signal_number)
    return summary
