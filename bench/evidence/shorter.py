"""Shorter schedules: what each of them costs, and how many epochs the plain recipe needs for the same accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np

from oekd_fast.config.epoch_work import epoch_costs
from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.family.flops import family_flops

from . import results
from .arms import ARMS, COMMON, config_of

PLAIN = "one"  # the recipe that the arms of shorter schedules change
_PREFIX = "short_"
_CLASSES, _IMAGE_SIZE = 100, 32


def names() -> list[str]:
    """Return the arms of shorter schedules."""
    return [name for name in ARMS if name.startswith(_PREFIX)]


def operations(arm: str, epochs: int) -> float:
    """Return the operations of the steps of a family of `arm`, as a share of those of the plain recipe."""
    config = config_of(ARMS[arm], "subset", epochs)
    base, branches = family_flops(build_ensemble(COMMON["model"], COMMON["num_students"], _CLASSES), _IMAGE_SIZE)
    selection = (base + branches[-1]) / (3 * (base + sum(branches)))
    return fmean(epoch_costs(config, epochs, selection))


def mean_accuracy(entries: Sequence[dict[str, Any]], arm: str, epochs: int) -> float | None:
    """Return the mean accuracy of the students of the families of `arm`, over students and seeds; None without one."""
    found = [
        fmean(entry["accuracy"])
        for key, entry in ((results.key_of(entry), entry) for entry in entries)
        if (key.arm, key.epochs, key.student) == (arm, epochs, None)
    ]
    return fmean(found) if found else None


def epochs_of_plain(entries: Sequence[dict[str, Any]], accuracy: float) -> float | None:
    """Return after how many epochs the plain recipe has the mean accuracy `accuracy`; None beyond its schedules.

    It is interpolated between families of the plain recipe that were trained with schedules of other lengths.
    """
    lengths = sorted({entry["epochs"] for entry in entries if entry["arm"] == PLAIN and entry["student"] is None})
    means = [mean_accuracy(entries, PLAIN, length) for length in lengths]
    if len(lengths) < 2 or not means[0] <= accuracy <= means[-1]:
        return None
    return float(np.interp(accuracy, means, lengths))
