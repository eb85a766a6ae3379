"""Results of runs: accuracies on the validation images at the last epoch, by which recipes are chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oekd_fast.common.machine import machine

from .. import result_file
from .arms import ARMS, COMMON

# Options of `COMMON` that do not change the accuracies of the last epoch; results with other values of them count.
_WITHOUT_EFFECT = ("evaluate_every", "latency")

Key = tuple[str, int, int]  # arm, seed, number of epochs


def entry(name: str, seed: int, run: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept of a finished run.

    Returns:
        ``family`` and ``ensemble``: accuracies in percent on the validation images after the last epoch. ``train``:
        those on the augmented training images. ``alone``: the accuracy of each student trained alone, [] if none was.
        ``minutes`` of all phases, and ``machine``.
    """
    last = {}
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        last[line["phase"]] = line
    family = last["ensemble"]
    alone = [line for phase, line in last.items() if phase.startswith("baseline_")]
    return {
        "arm": name,
        "seed": seed,
        "epochs": family["epoch"],
        "family": family["validation"]["accuracy"],
        "ensemble": family["validation"]["ensemble_accuracy"],
        "train": family["train"]["accuracy"],
        "alone": [line["validation"]["accuracy"][0] for line in alone],
        "minutes": round(summary["seconds"] / 60, 1),
        "machine": machine(),
    }


def write(file: Path, entries: list[dict[str, Any]]) -> None:
    """Write the results with the options and the hypothesis of each arm."""
    names = dict.fromkeys(entry["arm"] for entry in entries)
    arms = {name: _described(name) for name in names}
    what = "accuracy on validation images after the last epoch, percent, on a subset of CIFAR-100"
    result_file.write(file, {"what": what, "common": COMMON, "arms": arms, "results": entries})


def key_of(entry: Mapping[str, Any]) -> Key:
    """Return arm, seed and number of epochs of a result."""
    return entry["arm"], entry["seed"], entry["epochs"]


def recorded(file: Path) -> set[Key]:
    """Return the keys of the complete results in `file` whose arm has the same options today.

    Options of `COMMON` that do not change the accuracies of the last epoch may differ.
    A result is complete if it has the students alone where its arm trains them.
    """
    if not file.exists():
        return set()
    report = json.loads(file.read_text())
    same = {name for name, arm in report["arms"].items() if name in ARMS and arm == _described(name)}
    if _with_effect(report["common"]) != _with_effect(COMMON):
        return set()
    complete = (
        entry
        for entry in report["results"]
        if entry["arm"] in same and (not ARMS[entry["arm"]].alone or len(entry["alone"]) == len(entry["family"]))
    )
    return {key_of(entry) for entry in complete}


def _with_effect(common: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in common.items() if name not in _WITHOUT_EFFECT}


def _described(name: str) -> dict[str, Any]:
    """Return an arm as JSON holds it."""
    arm = ARMS[name]
    return json.loads(json.dumps({"hypothesis": arm.hypothesis, "fields": dict(arm.fields), "ramped": arm.ramped}))


def read(file: Path) -> list[dict[str, Any]]:
    """Return the results in `file`, [] without one."""
    return json.loads(file.read_text())["results"] if file.exists() else []
