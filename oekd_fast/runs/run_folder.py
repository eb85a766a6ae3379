"""The folder of one run: config.json, metrics.jsonl, summary.json, report.png, checkpoints/, students/, baselines/."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from oekd_fast.common.checked_json import dump_checked, load_checked
from oekd_fast.common.files import (
    append_durably,
    make_folder_below,
    read_regular,
    remove_temporary_files,
    write_atomically,
)
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data.known import may_hold_the_same, same_data_name
from oekd_fast.runs.folder_lock import FolderLock

CONFIG_FILE = "config.json"
_LARGEST_CONFIG = 1 << 20  # bytes


class RunFolderError(ValueError):
    """The run folder is in use by another run, or damaged."""


class RunFolder:
    """Folder of a run: new, or that of the run to resume. Nothing is written before `claim` is called.

    As a context, it holds the lock of the folder: from the start if the folder exists, else from `claim` on.

    Args:
        config: names the folder, and whether its run is resumed.
        writes: False for a rank that neither reads nor writes the folder, since rank 0 does. Its methods then only
            return paths.

    Raises:
        RunFolderError: the folder holds a run and `config.resume` is False, or `config` differs from the run's.
        FolderInUseError: another process writes to the folder.
    """

    def __init__(self, config: TrainConfig, *, writes: bool = True) -> None:
        self.path = config.run_folder
        self._config, self._writes = config, writes
        self._lock = FolderLock(self.path)
        self._entered = False
        self._follower: Callable[[dict[str, Any]], None] | None = None
        if writes:
            self._check()

    def __enter__(self) -> RunFolder:
        self._entered = True
        if self._writes and self.path.is_dir():
            self._take_lock()
        return self

    def __exit__(self, *exc: object) -> None:
        self._entered = False
        if self._lock.held:
            self._lock.__exit__(*exc)

    def _take_lock(self) -> None:
        self._lock.__enter__()
        try:
            self._check()  # another process may have written to the folder since the first check
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise

    def _check(self) -> None:
        holds_run = any(path.exists() for path in (self.config_file, self.metrics_file, self.path / "checkpoints"))
        if holds_run and not self._config.resume:
            if not self._lock.held:
                with contextlib.suppress(OSError), FolderLock(self.path):  # names the process if the run is not over
                    pass
            raise RunFolderError(
                f"output_dir: {self.path} already holds a run; --resume continues it, another folder starts a new one"
            )
        if self.config_file.exists():
            check_same_training(self._read_config(), self._config, str(self.config_file))

    @property
    def config_file(self) -> Path:
        return self.path / CONFIG_FILE

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def summary_file(self) -> Path:
        return self.path / "summary.json"

    @property
    def report_file(self) -> Path:
        return self.path / "report.png"

    @property
    def students(self) -> Path:
        return self.path / "students"

    @property
    def baselines(self) -> Path:
        return self.path / "baselines"

    def checkpoints(self, phase: str) -> Path:
        """Return the folder of the checkpoints of `phase`."""
        return self.path / "checkpoints" / phase

    def claim(self, config: TrainConfig, phase: str | None = None) -> None:
        """Create the folder and that of the checkpoints of `phase`, check that both can be written, write config.json.

        Raises:
            RunFolderError: a folder for results is a link, which may lead to files of others.
            OSError: a folder cannot be written.
        """
        if not self._writes:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        if self._entered and not self._lock.held:
            self._take_lock()
        self._refuse_links()
        for folder in (self.path, self.students, self.baselines):
            if self._lock.held and folder.is_dir():
                remove_temporary_files(folder)
                _check_writable(folder)
        if phase is not None:
            _check_writable(make_folder_below(self.path, "checkpoints", phase))
        _write_json(self.config_file, config.as_dict())

    def make_folder(self, folder: Path) -> Path:
        """Create `students`, `baselines` or the folder of `checkpoints` below the run folder, and return it.

        Raises:
            OSError: it is a link or a file, or cannot be created.
        """
        return make_folder_below(self.path, *folder.relative_to(self.path).parts)

    def follow(self, follower: Callable[[dict[str, Any]], None]) -> None:
        """Have `follower` called with each line of metrics.jsonl after it is written, also if it is written again."""
        self._follower = follower

    def write_metrics(self, lines: list[dict[str, Any]]) -> None:
        """Replace metrics.jsonl by `lines`, which drops lines that a killed run wrote after its last checkpoint, and a
        last line that it wrote in part."""
        if not self._writes:
            return
        write_atomically(self.metrics_file, "".join(dump_checked(line) + "\n" for line in lines).encode())
        self._tell(lines)

    def add_metrics(self, line: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        if not self._writes:
            return
        append_durably(self.metrics_file, (dump_checked(line) + "\n").encode())
        self._tell([line])

    def _tell(self, lines: list[dict[str, Any]]) -> None:
        for line in lines if self._follower is not None else ():
            self._follower(line)

    def write_summary(self, summary: dict[str, Any]) -> None:
        _write_json(self.summary_file, summary)

    def names_the_same_data(self) -> bool:
        """Return whether config.json names the data set of the config, by a name or a path to the same folder."""
        stored = self._read_config().get("dataset", TrainConfig().dataset)
        return isinstance(stored, str) and same_data_name(stored, self._config.dataset)

    def _refuse_links(self) -> None:
        checkpoints = self.path / "checkpoints"
        phases = checkpoints.iterdir() if checkpoints.is_dir() else ()
        for folder in (checkpoints, *phases, self.students, self.baselines):
            if folder.is_symlink():
                raise RunFolderError(f"output_dir: expected a folder, got a symbolic link: {folder}")

    def _read_config(self) -> dict[str, Any]:
        try:
            return load_checked(read_regular(self.config_file, _LARGEST_CONFIG))
        except ValueError as error:
            raise RunFolderError(f"output_dir: {self.config_file} is damaged ({error})") from error


def stored_precision(config: TrainConfig) -> str | None:
    """Return the precision in the config.json of the folder of `config`; None without a file that holds a config.

    Runs of version 0.1.0 with the default, fp32, have recorded it as other runs do.
    """
    try:
        stored = load_checked(read_regular(config.run_folder / CONFIG_FILE, _LARGEST_CONFIG))
        return replace(config, precision=stored["precision"]).precision
    except (KeyError, OSError, TypeError, ValueError):  # opening the folder names what is wrong
        return None


def check_same_training(before: dict[str, Any], config: TrainConfig, where: str) -> None:
    """Check that `config` trains the same as `before`, the stored fields of a config; where a field is missing, the
    run was trained with its default.

    One folder of data may take the place of another. What they hold is compared where a checkpoint is loaded. A
    precision that is not set stands for any.

    Args:
        where: the file that holds `before`, for the message.

    Raises:
        RunFolderError: a field differs, or `before` is not a valid config; the message names each field.
    """
    try:
        expected = TrainConfig.from_dict(before).training_fields()
    except (TypeError, ValueError) as error:
        raise RunFolderError(f"output_dir: {where} is damaged ({error})") from error
    differences = [
        f"{name}: expected {expected[name]!r}, got {value!r}"
        for name, value in config.training_fields().items()
        if expected[name] != value
        and not (name == "dataset" and may_hold_the_same(expected[name], value))
        and not (name == "precision" and value is None)
    ]
    if differences:
        raise RunFolderError(f"the config does not match {where}; " + "; ".join(differences))


def _check_writable(folder: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, (dump_checked(content, indent=1) + "\n").encode())
