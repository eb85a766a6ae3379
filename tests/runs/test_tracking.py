"""Trackers: each line of metrics.jsonl once, also after a stop, a kill or a failure; the real packages offline."""

import contextlib
import json
import socket
import sqlite3
import struct
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.runs import trackers
from oekd_fast.runs.interrupt import Interrupted
from oekd_fast.runs.run import train
from oekd_fast.runs.run_folder import RunFolder
from oekd_fast.runs.trackers import TRACKERS, flattened
from oekd_fast.runs.tracking import Tracking

from ..support.small_runs import QUIET, assert_same_run

PACKAGES = {"tensorboard": "torch.utils.tensorboard", "trackio": "trackio", "wandb": "wandb", "mlflow": "mlflow"}


def line(phase: str, epoch: int) -> dict:
    """Return a line of metrics.jsonl of two students."""
    values = {"loss": 1 / epoch, "ce": [0.5, 0.25 * epoch], "feature": None}
    return {"phase": phase, "epoch": epoch, "step": 10 * epoch, "train": values, "validation": {"accuracy": [50.0]}}


LINES = [line("ensemble", 1), line("ensemble", 2), line("ensemble", 3), line("baseline_1", 1)]


class Recorder:
    """A tracker that keeps what it is told, in `told`, and raises at the call number `fails`."""

    told: list
    fails: int | None = None

    def start(self, run):
        self._tell("start", run.name, run.project, run.config["epochs"], run.run_id)
        return run.run_id or "id of the tracker"

    def log(self, values, epoch, number):
        self._tell(next(iter(values)).partition("/")[0], epoch, number)

    def finish(self, status):
        self._tell(status)

    def _tell(self, *what):
        if len(self.told) == self.fails:
            raise ConnectionError("no route to host\nsecond line")
        self.told.append(what)


@pytest.fixture
def recorder(monkeypatch):
    class Own(Recorder):
        told, fails = [], None

    monkeypatch.setattr(trackers, "TRACKERS", {**TRACKERS, "wandb": Own})
    return Own


@pytest.fixture
def tracked(tmp_path) -> TrainConfig:
    return TrainConfig(output_dir=tmp_path / "run", tracker="wandb", tracker_project="digits", epochs=3)


def track(config: TrainConfig, history: list, new: list, error: Exception | None = None, console=QUIET) -> None:
    """Write lines as a run does: first those of a checkpoint, then one after the other; then raise `error`."""
    config = replace(config, resume=True)
    with RunFolder(config) as folder, Tracking(config, folder, console):
        folder.claim(config)
        folder.write_metrics(history)
        for each in new:
            folder.add_metrics(each)
        if error is not None:
            raise error


def test_a_tracker_gets_each_line_once(tracked, recorder):
    track(tracked, [], LINES)
    lines = [("ensemble", 1, 0), ("ensemble", 2, 1), ("ensemble", 3, 2), ("baseline_1", 1, 3)]
    assert recorder.told == [("start", "run", "digits", 3, None), *lines, ("finished",)]


def test_a_resumed_run_continues_that_of_the_tracker(tracked, recorder):
    with pytest.raises(Interrupted):
        track(tracked, [], LINES[:2], Interrupted("stopped", 15))
    del recorder.told[:]
    # The checkpoint is older than the last line, whose epoch is trained and written again.
    with pytest.raises(RuntimeError):
        track(tracked, LINES[:1], LINES[1:3], RuntimeError())
    assert recorder.told == [("start", "run", "digits", 3, "id of the tracker"), ("ensemble", 3, 2), ("failed",)]
    del recorder.told[:]
    track(tracked, LINES[:3], [])  # nothing is new
    assert recorder.told == []


def test_a_tracker_that_is_chosen_later_gets_the_lines_before(tracked, recorder):
    track(tracked, LINES[:2], LINES[2:])
    assert [told[-1] for told in recorder.told[1:-1]] == [0, 1, 2, 3]


@pytest.mark.parametrize("fails", [0, 2, 5], ids=["start", "a line", "finish"])
def test_a_tracker_that_fails_is_given_up_in_one_line(tracked, recorder, tmp_path, fails):
    recorder.fails = fails
    with (tmp_path / "log").open("w") as log:
        track(tracked, [], LINES, console=Console(file=log, width=300))
    assert (tmp_path / "log").read_text() == (
        "tracker: wandb failed (ConnectionError: no route to host); the training goes on without it, metrics.jsonl has "
        "all lines, and a run with --resume sends those that are missing\n"
    )
    written = (tracked.run_folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(each)["epoch"] for each in written] == [1, 2, 3, 1]
    recorder.fails = None
    track(tracked, LINES, [])  # the missing lines, and none of them twice
    assert [told for told in recorder.told if told[0] in ("ensemble", "baseline_1")] == [
        ("ensemble", 1, 0), ("ensemble", 2, 1), ("ensemble", 3, 2), ("baseline_1", 1, 3)
    ]  # fmt: skip


def test_a_killed_process_leaves_no_line_twice(tracked, recorder, monkeypatch):
    """The kill comes after the line was recorded and before it was sent."""

    class KillError(BaseException):
        pass

    def killed(self, *_):
        raise KillError

    with monkeypatch.context() as patch:
        patch.setattr(recorder, "log", killed)
        with pytest.raises(KillError):
            track(tracked, [], LINES[:1])
    track(tracked, [], LINES[:2])
    assert ("ensemble", 1, 0) not in recorder.told and ("ensemble", 2, 1) in recorder.told


@pytest.mark.parametrize(
    "content",
    ["{", '{"wandb": {"run": null, "lines": "x", "epochs": {}}}', '{"wandb": {"run": 3, "lines": 0, "epochs": {}}}'],
)
def test_a_damaged_record_is_refused_before_the_training(tracked, recorder, content):
    tracked.run_folder.mkdir()
    (tracked.run_folder / "tracker.json").write_text(content)
    with pytest.raises(ValueError, match=r"^tracker: \S+/tracker.json is damaged \(.*\); remove it to start a new run"):
        track(tracked, [], LINES)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_one_line(config, monkeypatch, name):
    monkeypatch.setitem(sys.modules, PACKAGES[name], None)
    message = (
        rf"^tracker: {name} cannot be imported \(.*\); pip install {name}, or pip install 'oekd_fast\[trackers\]'$"
    )
    with pytest.raises(ValueError, match=message):
        train(replace(config, tracker=name), QUIET)
    assert not config.run_folder.exists()


def test_lines_become_numbers_by_name():
    assert flattened(LINES[1]) == {
        "ensemble/epoch": 2, "ensemble/step": 20, "ensemble/train/loss": 0.5, "ensemble/train/ce/1": 0.5,
        "ensemble/train/ce/2": 0.5, "ensemble/validation/accuracy/1": 50.0,
    }  # fmt: skip


def test_a_run_with_a_tracker_is_the_same_run(smallest, recorder, tmp_path, monkeypatch):
    """A run without a tracker imports none of the packages."""
    train(replace(smallest, tracker="wandb"), QUIET)
    assert recorder.told == [("start", "run", "oekd_fast", 1, None), ("ensemble", 1, 0), ("finished",)]
    for module in PACKAGES.values():
        monkeypatch.setitem(sys.modules, module, None)
    plain = replace(smallest, output_dir=tmp_path / "plain")
    train(plain, QUIET)
    assert_same_run(plain.run_folder, smallest.run_folder)
    assert not (plain.run_folder / "tracker.json").exists()


# -- the real packages


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Refuse every connection of this process to another machine, and have the packages store below `tmp_path`."""
    connect = socket.socket.connect

    def local(self, address):
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "localhost", "::1"):
            raise AssertionError(f"a connection to {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path / 'mlflow'}")  # faster than its data base
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for limit in ("WANDB_INIT_TIMEOUT", "WANDB__SERVICE_WAIT"):  # its own process may start slowly on a busy machine
        monkeypatch.setenv(limit, "600")


def real(name: str, config: TrainConfig) -> None:
    """Track a run that is stopped after two lines and resumed from the first one."""
    pytest.importorskip(PACKAGES[name], reason=f"{name} is not installed; see the extra [trackers]")
    own = replace(config, tracker=name)
    with pytest.raises(Interrupted):
        track(own, [], LINES[:2], Interrupted("stopped", 15), console=Console())
    track(own, LINES[:1], LINES[1:], console=Console())


LOSSES = [1.0, 0.5, pytest.approx(1 / 3)]


@pytest.mark.slow
def test_tensorboard_event_files(tracked, offline, capsys):
    real("tensorboard", tracked)
    assert "failed" not in capsys.readouterr().out
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(tracked.run_folder / "tensorboard")).Reload()
    assert [event.step for event in read.Scalars("ensemble/train/loss")] == [1, 2, 3]
    assert [event.value for event in read.Scalars("ensemble/train/loss")] == LOSSES
    assert [event.value for event in read.Scalars("baseline_1/train/ce/2")] == [0.25]


@pytest.mark.slow
def test_mlflow_store(tracked, offline, capsys):
    real("mlflow", tracked)
    assert "failed" not in capsys.readouterr().out
    import mlflow

    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    history = client.get_metric_history(run.info.run_id, "ensemble/train/loss")
    assert [(point.step, point.value) for point in history] == list(zip((1, 2, 3), LOSSES, strict=True))
    assert run.data.metrics["baseline_1/train/ce/2"] == 0.25 and run.data.params["epochs"] == "3"
    assert run.info.status == "FINISHED" and run.info.run_name == "run"


@pytest.mark.slow
def test_trackio_on_this_machine(tracked, offline, tmp_path, capsys):
    real("trackio", tracked)
    assert "failed" not in capsys.readouterr().out
    with contextlib.closing(sqlite3.connect(tmp_path / "trackio" / "digits.db")) as database:
        rows = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
    points = [json.loads(metrics) for _, _, metrics in rows]
    assert [step for _, step, _ in rows] == [0, 1, 2, 3] and len({name for name, _, _ in rows}) == 1
    assert [point["ensemble/train/loss"] for point in points[:3]] == LOSSES
    assert points[3]["baseline_1/train/ce/2"] == 0.25


@pytest.mark.slow
def test_wandb_offline(tracked, offline, capsys):
    real("wandb", tracked)
    assert "failed" not in capsys.readouterr().out
    files = sorted((tracked.run_folder / "wandb").glob("offline-run-*/run-*.wandb"))
    records = [record for file in files for record in records_of_wandb(file)]
    runs = [record.run for record in records if record.HasField("run")]
    assert len(files) == 2 and len({run.run_id for run in runs}) == 1  # `wandb sync` joins the files of a run
    assert {(run.project, run.display_name) for run in runs} == {("digits", "run")}
    items = [record.history.item for record in records if record.HasField("history")]
    points = [{"/".join(each.nested_key) or each.key: json.loads(each.value_json) for each in item} for item in items]
    assert [point["_step"] for point in points] == [0, 1, 2, 3]
    assert [point["ensemble/train/loss"] for point in points[:3]] == LOSSES
    assert points[3]["baseline_1/train/ce/2"] == 0.25
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [1, 0]


def records_of_wandb(file):
    """Yield the records of a .wandb file: a header of 7 bytes, then the log format of LevelDB with protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, body = file.read_bytes(), 7, b""
    while at < len(content):
        if (left := 32768 - at % 32768) < 7:  # the end of a block is padded
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        body, at = body + content[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(body)
            body = b""
