"""Results of runs: accuracies on the validation images at the last epoch, by which recipes are chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from oekd_fast.common.machine import machine

from .. import result_file
from .arms import ARMS, COMMON

# Options of `COMMON` that do not change the accuracies of the last epoch; results with other values of them count.
_WITHOUT_EFFECT = ("evaluate_every", "latency")


class Key(NamedTuple):
    """What a result is of: a family (`student` is None), or one student trained alone, counted from 1."""

    arm: str
    seed: int
    epochs: int
    student: int | None


def entry(key: Key, lines: Sequence[Mapping[str, Any]], test: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what is kept of a finished run.

    Args:
        key: what was trained.
        lines: its lines of metrics.jsonl.
        test: ``accuracy`` and ``ensemble`` on the test images after the last epoch, and the images that are classified
            correctly; None leaves them out.

    Returns:
        The fields of `key`; ``accuracy`` of each student and, for a family, of the ``ensemble``, in percent on the
        validation images after the last epoch; ``train``, the accuracies on the augmented training images of that
        epoch; ``curve``, the accuracies on the validation images by evaluated epoch; ``test``, if it is given;
        ``minutes`` of training and evaluation; and ``machine``.
    """
    last = lines[-1]
    seconds = sum(line["seconds"] + line.get("evaluation_seconds", 0.0) for line in lines)
    return {
        **key._asdict(),
        "accuracy": last["validation"]["accuracy"],
        "ensemble": last["validation"]["ensemble_accuracy"] if key.student is None else None,
        "train": last["train"]["accuracy"],
        "curve": {line["epoch"]: line["validation"]["accuracy"] for line in lines if "validation" in line},
        **({} if test is None else {"test": {**test, "accuracy": [round(value, 4) for value in test["accuracy"]]}}),
        "minutes": round(seconds / 60, 2),
        "machine": machine(),
    }


def write(file: Path, entries: list[dict[str, Any]]) -> None:
    """Write the results with the options and the hypothesis of each arm."""
    names = dict.fromkeys(entry["arm"] for entry in entries)
    arms = {name: _described(name) for name in names}
    what = "accuracy on validation images after the last epoch, percent, on a subset of CIFAR-100"
    result_file.write(file, {"what": what, "common": COMMON, "arms": arms, "results": entries})


def add(file: Path, result: dict[str, Any]) -> None:
    """Add a result to `file`, or replace the one of the same key. Processes that do so wait for each other."""
    with FileLock(file.with_suffix(".lock")):
        others = [entry for entry in read(file) if key_of(entry) != key_of(result)]
        write(file, [*others, result])


def key_of(entry: Mapping[str, Any]) -> Key:
    """Return what a result is of."""
    return Key(*(entry[name] for name in Key._fields))


def recorded(file: Path) -> set[Key]:
    """Return the keys of the results in `file` whose arm has the same options today.

    Options of `COMMON` that do not change the accuracies of the last epoch may differ.
    """
    if not file.exists():
        return set()
    report = json.loads(file.read_text())
    same = {name for name, arm in report["arms"].items() if name in ARMS and arm == _described(name)}
    if _with_effect(report["common"]) != _with_effect(COMMON):
        return set()
    return {key_of(entry) for entry in report["results"] if entry["arm"] in same}


def _with_effect(common: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in common.items() if name not in _WITHOUT_EFFECT}


def _described(name: str) -> dict[str, Any]:
    """Return an arm as JSON holds it."""
    arm = ARMS[name]
    taught = {"taught": True} if arm.taught else {}
    described = {"hypothesis": arm.hypothesis, "fields": dict(arm.fields), "ramped": arm.ramped, **taught}
    return json.loads(json.dumps(described))


def read(file: Path) -> list[dict[str, Any]]:
    """Return the results in `file`, [] without one."""
    return json.loads(file.read_text())["results"] if file.exists() else []
