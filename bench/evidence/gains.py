"""Gains of students in a family over the same students alone, paired by seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from oekd_fast.reporting.significance import Difference, over_seeds

from . import results

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
