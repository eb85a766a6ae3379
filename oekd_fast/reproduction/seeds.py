"""The runs of a reproduction: which are finished, and the rest trained."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.runs.interrupt import Interrupted, StopRequest
from oekd_fast.runs.run import train
from oekd_fast.runs.run_folder import RunFolder


def seed_config(config: TrainConfig, folder: Path, seed: int) -> TrainConfig:
    """`config` as the run of `seed` in ``folder/seed-<seed>``, continued if it is there."""
    return replace(config, seed=seed, output_dir=folder / f"seed-{seed}", resume=True)


def finished(config: TrainConfig) -> dict[str, Any] | None:
    """The summary of the run of `config`, which has ``resume``; None if it is not there or not complete.

    Raises:
        RunFolderError: its folder holds a run that was trained otherwise, in fields that the message names.
    """
    folder = RunFolder(config)
    if not folder.config_file.exists():
        return None
    try:
        summary = json.loads(folder.summary_file.read_bytes())
        return summary if _is_complete(summary, config) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _is_complete(summary: dict[str, Any], config: TrainConfig) -> bool:
    of_student = ["accuracy", "last_epoch_accuracy"]
    if config.baseline:
        of_student += ["baseline_accuracy", "last_epoch_baseline_accuracy"]
    numbers = [student[key] for student in summary["students"] for key in of_student]
    numbers.append(summary["ensemble_accuracy"])
    if config.objective != "born_again":  # whose ensemble is of selected epochs alone
        numbers.append(summary["last_epoch_ensemble_accuracy"])
    return len(numbers) > 2 and summary["epochs"] == config.epochs and all(map(math.isfinite, numbers))


def run(config: TrainConfig, console: Console) -> dict[str, Any]:
    """The summary of the run of `config`, trained as far as it is not.

    Raises:
        RunFolderError: as `finished`.
        Interrupted: SIGINT or SIGTERM, also if this run still came to its end.
        Others: as `train`.
    """
    summary = finished(config)
    if summary is None:
        stop = StopRequest()
        summary = train(config, console, stop)
        if stop.signal_number is not None:
            raise Interrupted(f"{config.run_folder}: finished, stopped before the next run", stop.signal_number)
    return summary
