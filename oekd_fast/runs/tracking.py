"""Sending the lines of metrics.jsonl to a tracker, each once, without risk to the training."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from oekd_fast.common.checked_json import dump_checked, load_checked
from oekd_fast.common.files import read_regular, write_atomically
from oekd_fast.common.text import print_line, reason_of
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.runs.interrupt import Interrupted
from oekd_fast.runs.run_folder import RunFolder
from oekd_fast.runs.trackers import TrackedRun, Tracker, flattened, open_tracker

RECORD_FILE = "tracker.json"
_LARGEST_RECORD = 1 << 20  # bytes


class Tracking:
    """Sends each line of metrics.jsonl to the tracker that a config names, as a context around the training.

    tracker.json in the run folder holds, for each tracker, the identifier of its run and the last epoch of each phase
    that was sent. A resumed run therefore continues the tracker's run and sends only lines that are new to it. An epoch
    is recorded before it is sent: if the process is killed in between, the tracker lacks a line and has none twice.

    If the tracker raises an exception, one line says so, nothing more is sent, and the training goes on. A run that is
    resumed later sends what is missing.

    Args:
        config: config of the run, with a tracker.
        folder: run folder, whose lines are sent from the time of entering the context.
        console: shows why the tracker was given up.

    Raises:
        ValueError: the package of the tracker is missing, or tracker.json is damaged.
    """

    def __init__(self, config: TrainConfig, folder: RunFolder, console: Console) -> None:
        self._config, self._folder, self._console = config, folder, console
        self._tracker: Tracker | None = open_tracker(config.tracker)
        self._file = folder.path / RECORD_FILE
        self._records = _read_records(self._file)
        self._record = self._records.get(config.tracker, {"run": None, "lines": 0, "epochs": {}})
        self._started = False

    def __enter__(self) -> Tracking:
        self._folder.follow(self.send)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._tracker is None or not self._started:
            return
        try:
            self._tracker.finish("finished" if kind is None else "stopped" if kind is Interrupted else "failed")
        except Exception as error:
            self._give_up(error)

    def send(self, line: Mapping[str, Any]) -> None:
        """Send a line of metrics.jsonl, unless it was sent before; the first one starts the run of the tracker."""
        before, lines, phase, epoch = self._record, self._record["lines"], line["phase"], line["epoch"]
        if self._tracker is None or epoch <= before["epochs"].get(phase, 0):
            return
        try:
            if not self._started:
                before = {**before, "run": self._start(self._tracker, before["run"])}
                self._started = True
            self._keep({**before, "lines": lines + 1, "epochs": {**before["epochs"], phase: epoch}})
            self._tracker.log(flattened(line), epoch, lines)
        except Exception as error:  # packages of others, which document no set of exceptions
            with contextlib.suppress(OSError):
                self._keep(before)
            self._give_up(error)

    def _start(self, tracker: Tracker, run_id: str | None) -> str:
        path = self._folder.path
        return tracker.start(
            TrackedRun(
                make_folder=lambda name: self._folder.make_folder(path / name),
                project=self._config.tracker_project,
                name=path.resolve().name,
                config=self._config.as_dict(),
                run_id=run_id,
            )
        )

    def _keep(self, record: dict[str, Any]) -> None:
        self._record = record
        self._records[self._config.tracker] = record
        write_atomically(self._file, (dump_checked(self._records, indent=1) + "\n").encode())

    def _give_up(self, error: Exception) -> None:
        self._tracker = None
        print_line(
            self._console,
            f"tracker: {self._config.tracker} failed ({reason_of(error)}); the training goes on without it, "
            f"{self._folder.metrics_file.name} has all lines, and a run with --resume sends those that are missing",
        )


def _read_records(file: Path) -> dict[str, dict[str, Any]]:
    """Return the records of all trackers by name; none if the file does not exist.

    Raises:
        ValueError: the file is damaged.
    """
    if not file.exists():
        return {}
    try:
        records = load_checked(read_regular(file, _LARGEST_RECORD))
        for record in records.values():
            lines, epochs = record["lines"], record["epochs"]
            if not all(isinstance(number, int) for number in (lines, *epochs.values())):
                raise ValueError(f"expected numbers of lines and epochs, got {lines} and {epochs}")
            if not isinstance(record["run"], str | None):
                raise ValueError(f"run: expected a string, got {record['run']}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"tracker: {file} is damaged ({reason_of(error)}); remove it to start a new run of the tracker"
        ) from error
    return records
