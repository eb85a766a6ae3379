"""State of the runs of a reproduction: what is finished, running, stopped and left, and the time that is left."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple

from oekd_fast.common.files import read_regular
from oekd_fast.common.quantities import clock_text
from oekd_fast.config.evaluated_epochs import EvaluatedEpochs
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
    seconds_left: time of the epochs and evaluations that are left, as far as their phases have measured ones.
    unmeasured: names of the phases that are left and of which no run has measured an epoch with its evaluation.
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


def statuses(
    runs: Sequence[TrainConfig], folder: Path, phases: Sequence[Sequence[str]] | None = None
) -> list[RunStatus]:
    """Return the state of each run below `folder`. Nothing is written.

    An epoch that is left takes the median time of the epochs of its phase, over all runs, and so does an evaluation.

    Args:
        runs: configs of the runs.
        folder: their common folder.
        phases: names of the phases that are trained in each run; None stands for all phases of its config.

    Raises:
        RunFolderError: a folder holds a run with another config; the message names the fields.
    """
    lines = [_lines(RunFolder(config).metrics_file) for config in runs]
    times = _median_times([line for of_run in lines for line in of_run])
    names = map(phase_names, runs) if phases is None else phases
    return [_status(*run, times, folder) for run in zip(runs, names, lines, strict=True)]


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
    return f"{line}; {clock_text(seconds)} left, and phases that were not measured in full: {', '.join(unmeasured)}"


class _Line(NamedTuple):
    """A line of metrics.jsonl: its phase, and the seconds of its steps and of its evaluation, which is None without
    one."""

    phase: str
    steps: float
    evaluation: float | None


class _Times(NamedTuple):
    """Seconds of the steps of an epoch and of an evaluation by phase, without the phases that have measured none."""

    steps: Mapping[str, float]
    evaluation: Mapping[str, float]


def _median_times(lines: Sequence[_Line]) -> _Times:
    steps, evaluations = defaultdict(list), defaultdict(list)
    for line in lines:
        steps[line.phase].append(line.steps)
        if line.evaluation is not None:
            evaluations[line.phase].append(line.evaluation)
    return _Times(*({phase: median(found) for phase, found in times.items()} for times in (steps, evaluations)))


def _status(
    config: TrainConfig, phases: Sequence[str], lines: Sequence[_Line], times: _Times, folder: Path
) -> RunStatus:
    path = config.run_folder
    asked = {name: config.pretrain_epochs if name == PRETRAINING else config.epochs for name in phases}
    finished_of = {name: sum(line.phase == name for line in lines) for name in asked}
    seconds = sum(line.steps + (line.evaluation or 0.0) for line in lines)
    name, epochs, done = path.relative_to(folder).as_posix(), sum(asked.values()), sum(finished_of.values())
    if holder_of(path) is not None:
        state: State = "running"
    elif finished(config) is not None:
        return RunStatus(name, "finished", done, epochs, seconds)
    else:
        state = "stopped" if RunFolder(config).config_file.exists() else "not started"
    seconds_left, unmeasured = 0.0, []
    for phase, count in asked.items():
        left = count - finished_of[phase]
        evaluations = EvaluatedEpochs(count, config.evaluate_every).after(finished_of[phase])
        seconds_left += left * times.steps.get(phase, 0.0) + evaluations * times.evaluation.get(phase, 0.0)
        if left and phase not in times.evaluation:
            unmeasured.append(phase)
    return RunStatus(name, state, done, epochs, seconds, seconds_left, tuple(unmeasured))


def _left(run: RunStatus) -> str:
    if run.state == "finished":
        return "-"
    if not run.unmeasured:
        return clock_text(run.seconds_left)
    return f"> {clock_text(run.seconds_left)}" if run.seconds_left else "unknown"


def _lines(file: Path) -> list[_Line]:
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
        evaluation = values.get("evaluation_seconds", 0.0 if "validation" in values else None)  # 0.1.0 had no times
        found.append(_Line(values["phase"], values["seconds"], evaluation))
    return found
