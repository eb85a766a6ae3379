"""Read the JSON files of a run folder, which may come from a stranger: each field is checked before it is used."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oekd_fast.common.checked_json import load_checked
from oekd_fast.common.files import read_regular
from oekd_fast.common.text import shortened
from oekd_fast.config.evaluated_epochs import EvaluatedEpochs
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.reporting.fields import (
    Fields,
    ReportError,
    is_count,
    is_list,
    is_list_of_objects,
    is_number,
    is_object_of_texts,
    is_percentage,
    is_percentage_or_null,
    is_text,
)
from oekd_fast.reporting.latency_fields import check_latency

# Largest files that are read, in bytes. An epoch of five students has about a kilobyte of metrics.
LARGEST_CONFIG, LARGEST_SUMMARY, LARGEST_METRICS = 2**20, 2**24, 2**28


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
    fields = Fields(summary, str(file))
    fields.check("dataset", "a string", is_text)
    fields.check("ensemble_accuracy", "a percentage", is_percentage)
    fields.check("selected_epoch", f"an epoch of 1 to {config.epochs}", lambda value: is_count(value, config.epochs))
    fields.check("test_images", "an integer >= 1", is_count)
    fields.check("seconds", "a number >= 0", lambda value: is_number(value) and value >= 0)
    fields.check("versions", "an object of strings", is_object_of_texts)
    if "images_per_second" in summary:
        fields.check("images_per_second", "a number >= 0", lambda value: is_number(value) and value >= 0)
    if "ensemble_accuracy_with_flips" in summary:  # older versions have none
        fields.check("ensemble_accuracy_with_flips", "a percentage or null", is_percentage_or_null)
    if "device" in summary:
        fields.check("device", "a string", is_text)
    fields.check("students", "a list of objects", is_list_of_objects)
    count = len(summary["students"])
    if count != (expected := _num_students(config)):
        raise ReportError(f"runs: {file}: expected {expected} students, got {count}")
    of_student = ("index", "parameters", "relative_size", "flops", "accuracy", "baseline_accuracy", "relative_gain")
    if missing := [name for name in of_student if any(name not in student for student in summary["students"])]:
        raise ReportError(f"runs: {file}: students lack {', '.join(missing)}; it was written by an older version")
    for number, student in enumerate(summary["students"], start=1):
        _check_student(Fields(student, f"{file}: students[{number - 1}]"), number)
    check_latency(fields)
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
    histories, evaluated = defaultdict(list), EvaluatedEpochs(config.epochs, config.evaluate_every)
    for number, line in enumerate(_content(file, LARGEST_METRICS).splitlines(), start=1):
        where = f"{file}, line {number}"
        try:
            entry = load_checked(line)
            phase = entry["phase"]
        except (ValueError, KeyError, RecursionError) as error:
            raise ReportError(f"runs: {where}, is damaged ({_line(error)})") from error
        Fields(entry, where).check("phase", "a string", is_text)
        if phase == "ensemble" or phase.startswith("baseline_"):
            students = _num_students(config) if phase == "ensemble" else 1
            _check_epoch(entry, where, len(histories[phase]) + 1, students, evaluated)
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


def _check_student(student: Fields, number: int) -> None:
    student.check("index", str(number), lambda value: is_count(value, number) and value == number)
    student.check("parameters", "an integer >= 1", is_count)
    student.check("relative_size", "a number > 0", lambda value: is_number(value) and value > 0)
    student.check("flops", "a number > 0", lambda value: is_number(value) and value > 0)
    student.check("accuracy", "a percentage", is_percentage)
    student.check("baseline_accuracy", "a percentage or null", is_percentage_or_null)
    for name in ("accuracy_with_flips", "baseline_accuracy_with_flips"):
        if name in student:
            student.check(name, "a percentage or null", is_percentage_or_null)
    student.check("relative_gain", "a number or null", lambda value: value is None or is_number(value))


def _check_epoch(entry: Mapping[str, Any], where: str, epoch: int, students: int, evaluated: EvaluatedEpochs) -> None:
    fields = Fields(entry, where)
    fields.check("epoch", str(epoch), lambda value: is_count(value, epoch) and value == epoch)
    train = fields.part("train")
    for name in ("ce", "kd"):
        train.check(name, f"a list of {students} numbers", lambda value: is_list(value, students, is_number))
    if epoch not in evaluated:
        if "validation" in fields:
            fields.check("validation", f"nothing with evaluate_every {evaluated.every}", lambda value: False)
        return
    validation = fields.part("validation")
    validation.check(
        "accuracy", f"a list of {students} percentages", lambda value: is_list(value, students, is_percentage)
    )
    if entry["phase"] == "ensemble":
        validation.check("ensemble_accuracy", "a percentage", is_percentage)


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
