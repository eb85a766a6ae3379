"""The folder of one run: config.json, metrics.jsonl, summary.json, report.png, checkpoints/, students/, baselines/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from oekd_fast.common.files import write_atomically
from oekd_fast.config.train_config import TrainConfig


class RunFolderError(ValueError):
    """The run folder is in use by another run, or damaged."""


class RunFolder:
    """Folder of a run: new, or that of the run to resume. Nothing is written before `claim` is called.

    Raises:
        RunFolderError: the folder holds a run and `config.resume` is False, or `config` differs from the run's.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.path = config.run_folder
        holds_run = any(path.exists() for path in (self.config_file, self.metrics_file, self.path / "checkpoints"))
        if holds_run and not config.resume:
            raise RunFolderError(
                f"output_dir: {self.path} already holds a run; --resume continues it, another folder starts a new one"
            )
        if self.config_file.exists():
            check_same_training(self._read_config(), config, str(self.config_file))

    @property
    def config_file(self) -> Path:
        return self.path / "config.json"

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

    def claim(self, config: TrainConfig) -> None:
        """Create the folder and write config.json."""
        self.path.mkdir(parents=True, exist_ok=True)
        _write_json(self.config_file, config.as_dict())

    def write_metrics(self, lines: list[dict[str, Any]]) -> None:
        """Replace metrics.jsonl by `lines`, which drops lines that a killed run wrote after its last checkpoint."""
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_atomically(self.metrics_file, text.encode())

    def add_metrics(self, line: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def write_summary(self, summary: dict[str, Any]) -> None:
        _write_json(self.summary_file, summary)

    def _read_config(self) -> dict[str, Any]:
        try:
            content = json.loads(self.config_file.read_bytes())
        except ValueError as error:
            raise RunFolderError(f"output_dir: {self.config_file} is damaged ({error})") from error
        if not isinstance(content, dict):
            raise RunFolderError(
                f"output_dir: {self.config_file} is damaged (expected a JSON object, got {type(content).__name__})"
            )
        return content


def check_same_training(before: dict[str, Any], config: TrainConfig, where: str) -> None:
    """Check that `config` trains the same as `before`, the stored fields of a config; where a field is missing, the
    run was trained with its default.

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
    ]
    if differences:
        raise RunFolderError(f"the config does not match {where}; " + "; ".join(differences))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
