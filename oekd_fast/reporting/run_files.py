"""Read the JSON files of a run folder, which may come from a stranger: each field is checked before it is used."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from oekd_fast.common.checked_json import load_checked
from oekd_fast.common.files import read_regular
from oekd_fast.common.text import shortened
from oekd_fast.config.train_config import TrainConfig

# Largest files that are read, in bytes. An epoch of five students has about a kilobyte of metrics.
LARGEST_CONFIG, LARGEST_SUMMARY, LARGEST_METRICS = 2**20, 2**24, 2**28


class ReportError(ValueError):
    """A folder cannot be reported; the message names it and what is missing."""


def read_config(folder: Path) -> TrainConfig:
    """Return the config of the run in `folder`.

    Raises:
        ReportError: config.json is missing or damaged, or a value is out of range.
    """
    file = folder / "config.json"
    try:
        return TrainConfig.from_dict(_read_object(file, LARGEST_CONFIG) | {"output_dir": folder})
    except (TypeError, ValueError) as error:
        if isinstance(error, ReportError):
            raise
        raise ReportError(f"runs: {file} is damaged ({_line(error)})") from error


def read_summary(folder: Path, config: TrainConfig) -> dict[str, Any]:
    """Return the content of summary.json in `folder`.

    Raises:
        ReportError: the file is damaged, or a field is missing or has another type or value than a run writes.
    """
    file = folder / "summary.json"
    summary = _read_object(file, LARGEST_SUMMARY)
    needed = ("dataset", "students", "ensemble_accuracy", "selected_epoch", "test_images", "seconds", "versions")
    if missing := [name for name in needed if name not in summary]:
        raise ReportError(f"runs: {file} lacks {', '.join(missing)}; it was written by an older version")
    fields = _Fields(summary, str(file))
    fields.check("dataset", "a string", _is_text)
    fields.check("ensemble_accuracy", "a percentage", _is_percentage)
    fields.check("selected_epoch", f"an epoch of 1 to {config.epochs}", lambda value: _is_count(value, config.epochs))
    fields.check("test_images", "an integer >= 1", _is_count)
    fields.check("seconds", "a number >= 0", lambda value: _is_number(value) and value >= 0)
    fields.check("versions", "an object of strings", _is_object_of_texts)
    if "images_per_second" in summary:
        fields.check("images_per_second", "a number >= 0", lambda value: _is_number(value) and value >= 0)
    if "ensemble_accuracy_with_flips" in summary:  # older versions have none
        fields.check("ensemble_accuracy_with_flips", "a percentage or null", _is_percentage_or_null)
    if "device" in summary:
        fields.check("device", "a string", _is_text)
    fields.check("students", "a list of objects", _is_list_of_objects)
    count = len(summary["students"])
    if count != (expected := _num_students(config)):
        raise ReportError(f"runs: {file}: expected {expected} students, got {count}")
    of_student = ("index", "parameters", "relative_size", "flops", "accuracy", "baseline_accuracy", "relative_gain")
    if missing := [name for name in of_student if any(name not in student for student in summary["students"])]:
        raise ReportError(f"runs: {file}: students lack {', '.join(missing)}; it was written by an older version")
    for number, student in enumerate(summary["students"], start=1):
        _check_student(_Fields(student, f"{file}: students[{number - 1}]"), number)
    return summary


def read_histories(folder: Path, config: TrainConfig) -> dict[str, list[dict[str, Any]]]:
    """Return the lines of metrics.jsonl in `folder` by phase.

    Raises:
        ReportError: the file is missing, a line is damaged or has fields of other types than a run writes, or a phase
            that is drawn does not have one line for each epoch; with early stopping it may have fewer.
    """
    file = folder / "metrics.jsonl"
    if not file.is_file():
        raise ReportError(f"runs: {file} is missing")
    histories = defaultdict(list)
    for number, line in enumerate(_content(file, LARGEST_METRICS).splitlines(), start=1):
        where = f"{file}, line {number}"
        try:
            entry = load_checked(line)
            phase = entry["phase"]
        except (ValueError, KeyError, RecursionError) as error:
            raise ReportError(f"runs: {where}, is damaged ({_line(error)})") from error
        _Fields(entry, where).check("phase", "a string", _is_text)
        if phase == "ensemble" or phase.startswith("baseline_"):
            students = _num_students(config) if phase == "ensemble" else 1
            _check_epoch(entry, where, len(histories[phase]) + 1, students)
        histories[phase].append(entry)
    for phase in ("ensemble", *(name for name in tuple(histories) if name.startswith("baseline_"))):
        least = config.epochs if config.patience is None else 1
        if not least <= len(histories[phase]) <= config.epochs:
            expected = f"{least} to {config.epochs}" if least < config.epochs else config.epochs
            raise ReportError(
                f"runs: {file}: expected {expected} lines of the phase {phase!r}, got {len(histories[phase])}"
            )
    return dict(histories)


def check_inside(file: Path, folder: Path) -> None:
    """Raise ReportError if `file` leads out of the run folder `folder` by a link."""
    if not file.resolve().is_relative_to(folder.resolve()):
        raise ReportError(f"runs: {file}: expected a file in the run folder, got a link to another folder")


class _Fields:
    """Fields of a JSON object, whose errors name the file and the field."""

    def __init__(self, content: Mapping[str, Any], where: str) -> None:
        self._content, self._where = content, where

    def check(self, name: str, expected: str, accepts: Callable[[Any], bool]) -> None:
        """Raise ReportError unless the field `name` exists and `accepts` returns True for its value."""
        if name not in self._content:
            raise ReportError(f"runs: {self._where}: {name}: expected {expected}, got nothing")
        value = self._content[name]
        if not accepts(value):
            raise ReportError(f"runs: {self._where}: {name}: expected {expected}, got {shortened(_shown(value), 60)}")

    def __contains__(self, name: str) -> bool:
        return name in self._content

    def part(self, name: str) -> _Fields:
        """Return the fields of the object in the field `name`."""
        self.check(name, "an object", lambda value: isinstance(value, dict))
        return _Fields(self._content[name], f"{self._where}: {name}")


def _check_student(student: _Fields, number: int) -> None:
    student.check("index", str(number), lambda value: _is_count(value, number) and value == number)
    student.check("parameters", "an integer >= 1", _is_count)
    student.check("relative_size", "a number > 0", lambda value: _is_number(value) and value > 0)
    student.check("flops", "a number > 0", lambda value: _is_number(value) and value > 0)
    student.check("accuracy", "a percentage", _is_percentage)
    student.check("baseline_accuracy", "a percentage or null", _is_percentage_or_null)
    for name in ("accuracy_with_flips", "baseline_accuracy_with_flips"):
        if name in student:
            student.check(name, "a percentage or null", _is_percentage_or_null)
    student.check("relative_gain", "a number or null", lambda value: value is None or _is_number(value))


def _check_epoch(entry: Mapping[str, Any], where: str, epoch: int, students: int) -> None:
    fields = _Fields(entry, where)
    fields.check("epoch", str(epoch), lambda value: _is_count(value, epoch) and value == epoch)
    train, validation = fields.part("train"), fields.part("validation")
    for name in ("ce", "kd"):
        train.check(name, f"a list of {students} numbers", lambda value: _is_list(value, students, _is_number))
    validation.check(
        "accuracy", f"a list of {students} percentages", lambda value: _is_list(value, students, _is_percentage)
    )
    if entry["phase"] == "ensemble":
        validation.check("ensemble_accuracy", "a percentage", _is_percentage)


def _num_students(config: TrainConfig) -> int:
    return 1 if config.family_objective.alone else config.num_students


def _read_object(file: Path, largest: int) -> dict[str, Any]:
    try:
        return load_checked(_content(file, largest))
    except (ValueError, RecursionError) as error:
        raise ReportError(f"runs: {file} is damaged ({_line(error)})") from error


def _content(file: Path, largest: int) -> bytes:
    check_inside(file, file.parent)
    return read_regular(file, largest)


def _line(error: Exception) -> str:
    return shortened(error, 200)


def _shown(value: Any) -> str:
    """Return a part of the JSON text of `value`, which may be large or deeply nested."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)} entries"
    return json.dumps(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    """Whether `value` is a finite number that a float can hold."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def _is_percentage(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 100


def _is_percentage_or_null(value: Any) -> bool:
    return value is None or _is_percentage(value)


def _is_count(value: Any, most: int = 2**53) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _is_object_of_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)


def _is_list(value: Any, length: int, accepts: Callable[[Any], bool]) -> bool:
    return isinstance(value, Sequence) and len(value) == length and all(map(accepts, value))
