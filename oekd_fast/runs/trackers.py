"""Experiment trackers that show the lines of metrics.jsonl; the package of one is imported when it is opened."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run when it starts.

    make_folder: returns the folder of a name in the run folder, and creates it.
    project: name of the project or experiment.
    name: name of the run.
    config: options of the run, as JSON values.
    run_id: what `start` returned when the run was started before; None for a new run.
    """

    make_folder: Callable[[str], Path]
    project: str
    name: str
    config: Mapping[str, Any]
    run_id: str | None


class Tracker(Protocol):
    """One tracker. Constructing it imports its package and does nothing else; every method may raise any exception."""

    def start(self, run: TrackedRun) -> str:
        """Start or continue a run, and return its identifier."""

    def log(self, values: Mapping[str, float], epoch: int, number: int) -> None:
        """Log the values of one line by name, as `flattened` returns them.

        Args:
            epoch: the epoch of the line, counted from 1 in each phase.
            number: number of lines logged before it, in this run and those that it continues.
        """

    def finish(self, status: str) -> None:
        """End the run: "finished", "stopped" or "failed"."""


class TensorBoard:
    """Event files in the folder `tensorboard` of the run."""

    def __init__(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._open = SummaryWriter

    def start(self, run: TrackedRun) -> str:
        self._writer = self._open(str(run.make_folder("tensorboard")))
        return run.run_id or run.name

    def log(self, values: Mapping[str, float], epoch: int, number: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def finish(self, status: str) -> None:
        self._writer.close()


class Trackio:
    """A run of trackio, stored where its environment variables say: by default on this machine."""

    def __init__(self) -> None:
        import trackio

        self._trackio = trackio

    def start(self, run: TrackedRun) -> str:
        name = run.run_id or f"{run.name}-{uuid.uuid4().hex[:8]}"  # trackio finds a run again by its name
        self._run = self._trackio.init(
            run.project, name, config=dict(run.config), resume="allow", embed=False, auto_log_cpu=False,
            auto_log_gpu=False,
        )  # fmt: skip
        return name

    def log(self, values: Mapping[str, float], epoch: int, number: int) -> None:
        self._run.log(dict(values), step=number)

    def finish(self, status: str) -> None:
        self._run.finish()


class Wandb:
    """A run of Weights & Biases, with files in the folder `wandb` of the run; WANDB_MODE=offline needs no network."""

    def __init__(self) -> None:
        import wandb

        self._wandb = wandb

    def start(self, run: TrackedRun) -> str:
        run_id = run.run_id or uuid.uuid4().hex[:12]
        self._run = self._wandb.init(
            project=run.project,
            name=run.name,
            id=run_id,
            resume="allow",
            dir=str(run.make_folder("wandb").parent),  # it adds a folder of that name
            config=dict(run.config),
            settings=self._wandb.Settings(console="off", quiet=True),
        )
        return run_id

    def log(self, values: Mapping[str, float], epoch: int, number: int) -> None:
        self._run.log(dict(values), step=number)

    def finish(self, status: str) -> None:
        self._run.finish(exit_code=0 if status == "finished" else 1)


class MLflow:
    """A run of MLflow, on the server or in the store that MLFLOW_TRACKING_URI names."""

    _STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}

    def __init__(self) -> None:
        import mlflow
        from mlflow.entities import Metric, Param

        self._client_type, self._metric, self._param = mlflow.MlflowClient, Metric, Param

    def start(self, run: TrackedRun) -> str:
        self._client = self._client_type()
        if run.run_id is not None:
            self._client.update_run(run.run_id, status="RUNNING")
            self._run_id = run.run_id
            return run.run_id
        experiment = self._client.get_experiment_by_name(run.project)
        number = self._client.create_experiment(run.project) if experiment is None else experiment.experiment_id
        self._run_id = self._client.create_run(number, run_name=run.name).info.run_id
        parameters = [self._param(name, str(value)[:500]) for name, value in run.config.items()]
        for first in range(0, len(parameters), 100):  # the most that a request may have
            self._client.log_batch(self._run_id, params=parameters[first : first + 100])
        return self._run_id

    def log(self, values: Mapping[str, float], epoch: int, number: int) -> None:
        now = int(1000 * time.time())
        metrics = [self._metric(name, value, now, epoch) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def finish(self, status: str) -> None:
        self._client.set_terminated(self._run_id, self._STATUS[status])


TRACKERS: Mapping[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": Wandb,
    "mlflow": MLflow,
}


def open_tracker(name: str) -> Tracker:
    """Return the tracker called `name`, one of `TRACKERS`.

    Raises:
        ValueError: its package is not installed, or cannot be imported.
    """
    try:
        return TRACKERS[name]()
    except ImportError as error:
        raise ValueError(
            f"tracker: {name} cannot be imported ({error}); pip install {name}, or pip install 'oekd_fast[trackers]'"
        ) from error


def flattened(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line of metrics.jsonl by name, such as "ensemble/validation/accuracy/1" for student 1.

    Names start with the phase, and entries of lists are counted from 1. Values that are no numbers are left out.
    """
    return dict(_numbers(line, str(line["phase"])))


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _numbers(entry, f"{name}/{key}")
    elif isinstance(value, (list, tuple)):
        for number, entry in enumerate(value, start=1):
            yield from _numbers(entry, f"{name}/{number}")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name, value
