"""Gains of students in a family over the same students alone, paired by seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from oekd_fast.reporting.significance import Difference, over_seeds

from . import results
from .test_images import error_over_seeds_and_images, unpacked

Accuracies = dict[int, float]  # by seed


def students_alone(entries: Sequence[dict[str, Any]], epochs: int, student: int) -> dict[str, Accuracies]:
    """Return the accuracies of a student, counted from 1, that was trained alone for `epochs` epochs, by recipe."""
    found: dict[str, Accuracies] = defaultdict(dict)
    for key, entry in ((results.key_of(entry), entry) for entry in entries):
        if (key.epochs, key.student) == (epochs, student):
            found[key.arm][key.seed] = entry["accuracy"][0]
    return dict(found)


def best_alone(entries: Sequence[dict[str, Any]], epochs: int, student: int) -> tuple[str, Accuracies] | None:
    """Return the recipe under which the student alone is best, with its accuracies; None if it was not trained alone.

    Recipes are compared by their mean over the seeds that all of them have.
    """
    recipes = students_alone(entries, epochs, student)
    if not recipes:
        return None
    common = set.intersection(*(set(of_recipe) for of_recipe in recipes.values()))
    if not common:  # the recipe with the most seeds
        return max(recipes.items(), key=lambda item: len(item[1]))
    return max(recipes.items(), key=lambda item: fmean(item[1][seed] for seed in common))


@dataclass(frozen=True)
class GainOnTest:
    """A gain on the test images.

    Args:
        over_seeds: the gain in points, with its standard error over seeds and the p-value of a paired t test.
        error: standard error over the choice of the seeds and of the test images, in points.
        seeds: number of seeds.
        alone: recipe of the student alone.
    """

    over_seeds: Difference
    error: float
    seeds: int
    alone: str


def gain_on_test(entries: Sequence[dict[str, Any]], arm: str, epochs: int, student: int) -> GainOnTest | None:
    """Return the gain of a student in families of `arm` over its best recipe alone, on the test images.

    The recipe alone is chosen by accuracies on the validation images. None if no seed has both results on test images.
    """
    chosen = best_alone(entries, epochs, student)
    if chosen is None:
        return None
    families, alone = {}, {}
    for entry in entries:
        key = results.key_of(entry)
        if "test" in entry and (key.arm, key.epochs, key.student) == (arm, epochs, None):
            families[key.seed] = _of_student(entry, student - 1)
        elif "test" in entry and (key.arm, key.epochs, key.student) == (chosen[0], epochs, student):
            alone[key.seed] = _of_student(entry, 0)
    both = sorted(set(families) & set(alone))
    if not both:
        return None
    accuracies, images = (
        [[of_place[seed][field] for seed in both] for of_place in (families, alone)] for field in range(2)
    )
    return GainOnTest(over_seeds(*accuracies), error_over_seeds_and_images(*images), len(both), chosen[0])


def _of_student(entry: Mapping[str, Any], place: int) -> tuple[float, np.ndarray]:
    """Return the accuracy of a student on the test images, and which of them it classifies correctly."""
    test = entry["test"]
    return test["accuracy"][place], unpacked(test["correct"][place], test["images"])


def gain(entries: Sequence[dict[str, Any]], arm: str, epochs: int, student: int) -> tuple[Difference, int] | None:
    """Return the gain of a student in families of `arm` over its best recipe alone, in points, and its number of seeds.

    Seeds that have both are compared, by a paired t test. None if there are none.
    """
    alone = best_alone(entries, epochs, student)
    families = {
        entry["seed"]: entry["accuracy"][student - 1]
        for entry in entries
        if (entry["arm"], entry["epochs"], entry["student"]) == (arm, epochs, None)
    }
    both = sorted(set(families) & set(alone[1])) if alone is not None else []
    if not both:
        return None
    return over_seeds([families[seed] for seed in both], [alone[1][seed] for seed in both]), len(both)
