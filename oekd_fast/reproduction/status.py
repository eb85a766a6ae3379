"""State of the runs of a reproduction: what is finished, running, stopped and left, and the time that is left."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from oekd_fast.common.files import read_regular
from oekd_fast.common.quantities import clock_text
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.paper import Ablation
from oekd_fast.reproduction.ablations import ablation_configs
from oekd_fast.reproduction.seeds import finished, seed_config
from oekd_fast.runs.folder_lock import holder_of
from oekd_fast.runs.plan import PRETRAINING, phase_names
from oekd_fast.runs.run_folder import RunFolder

State = Literal["finished", "running", "stopped", "not started"]


@dataclass(frozen=True)
class RunStatus:
    """State of one run.

    name: its folder, below that of the reproduction.
    state: "stopped" has begun and is neither finished nor written by a process.
    epochs_done, epochs: epochs of all its phases.
    seconds: time of the epochs that are done, evaluations included.
    seconds_left: time of the epochs that are left, in phases of which an epoch was measured.
    unmeasured: names of the phases that are left and of which no run has measured an epoch.
    """

    name: str
    state: State
    epochs_done: int
    epochs: int
    seconds: float
    seconds_left: float = 0.0
    unmeasured: tuple[str, ...] = ()


def runs_of(
    config: TrainConfig, folder: Path, seeds: Sequence[int], ablations: Sequence[Ablation] = ()
) -> list[TrainConfig]:
    """Return the config of each run of a reproduction in `folder`, in the order in which they are trained."""
    found = [seed_config(config, folder, seed) for seed in seeds]
    for name in ablations:
        for _, changed, place in ablation_configs(name, config, folder):
            found += [seed_config(changed, place, seed) for seed in seeds if place != folder]
    return found


def statuses(runs: Sequence[TrainConfig], folder: Path) -> list[RunStatus]:
    """Return the state of each run below `folder`. Nothing is written.

    An epoch that is left takes the median time of the epochs of its phase, over all runs.

    Raises:
        RunFolderError: a folder holds a run with another config; the message names the fields.
    """
    lines = [_lines(RunFolder(config).metrics_file) for config in runs]
    times = defaultdict(list)
    for line in (line for of_run in lines for line in of_run):
        times[line["phase"]].append(line["seconds"])
    epoch_of = {phase: median(values) for phase, values in times.items()}
    return [_status(config, of_run, epoch_of, folder) for config, of_run in zip(runs, lines, strict=True)]


def columns(found: Sequence[RunStatus]) -> dict[str, list[str]]:
    """Return the columns of a table with a row for each run."""
    return {
        "run": [run.name for run in found],
        "state": [run.state for run in found],
        "epochs": [f"{run.epochs_done} / {run.epochs}" for run in found],
        "trained": [clock_text(run.seconds) for run in found],
        "left": [_left(run) for run in found],
    }


def summary_line(found: Sequence[RunStatus]) -> str:
    """Return one line about all runs, such as "1 of 3 runs finished, 1 running; 2:10:00 left"."""
    counts = {state: sum(run.state == state for run in found) for state in ("running", "stopped", "not started")}
    others = "".join(f", {count} {state}" for state, count in counts.items() if count)
    done = len(found) - sum(counts.values())
    line = f"{done} of {len(found)} run{'s' if len(found) > 1 else ''} finished{others}"
    unmeasured = sorted({phase for run in found for phase in run.unmeasured})
    if done == len(found):
        return line
    seconds = sum(run.seconds_left for run in found)
    if not unmeasured:
        return f"{line}; {clock_text(seconds)} left"
    if not seconds:
        return f"{line}; the time left is not known before an epoch was measured"
    return f"{line}; {clock_text(seconds)} left, and phases of which no epoch was measured: {', '.join(unmeasured)}"


def _status(
    config: TrainConfig, lines: Sequence[Mapping[str, Any]], epoch_of: Mapping[str, float], folder: Path
) -> RunStatus:
    path = config.run_folder
    asked = {name: config.pretrain_epochs if name == PRETRAINING else config.epochs for name in phase_names(config)}
    left = {name: count - sum(line["phase"] == name for line in lines) for name, count in asked.items()}
    seconds = sum(line["seconds"] for line in lines)
    name, epochs = path.relative_to(folder).as_posix(), sum(asked.values())
    done = sum(asked.values()) - sum(left.values())
    if holder_of(path) is not None:
        state: State = "running"
    elif finished(config) is not None:
        return RunStatus(name, "finished", done, epochs, seconds)
    else:
        state = "stopped" if RunFolder(config).config_file.exists() else "not started"
    unmeasured = tuple(phase for phase, count in left.items() if count > 0 and phase not in epoch_of)
    seconds_left = sum(count * epoch_of.get(phase, 0.0) for phase, count in left.items())
    return RunStatus(name, state, done, epochs, seconds, seconds_left, unmeasured)


def _left(run: RunStatus) -> str:
    if run.state == "finished":
        return "-"
    if not run.unmeasured:
        return clock_text(run.seconds_left)
    return f"> {clock_text(run.seconds_left)}" if run.seconds_left else "unknown"


def _lines(file: Path) -> list[dict[str, Any]]:
    """Return the phase and the seconds of each epoch in metrics.jsonl; a last line that is not whole is left out."""
    found = []
    try:
        text = read_regular(file).decode()
    except OSError:
        return []
    for line in text.splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            break
        seconds = values["seconds"] + values.get("evaluation_seconds", 0.0)
        found.append({"phase": values["phase"], "seconds": seconds})
    return found
