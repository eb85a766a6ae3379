"""Select the results of the paper for one data set and model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oekd_fast.common.width_rule import WidthRule
from oekd_fast.data.known import known_name
from oekd_fast.paper import paper_tables

STUDENTS = 5


def paper_results(
    dataset: str, model: str, num_students: int, objective: str, widths: Sequence[float] | None = None
) -> dict[str, Any] | None:
    """Return the paper's results, or None if it has none for this data set, model, family and objective.

    The paper has results for families of five students with its own shares of the channels (`widths`, None for the
    default), trained with the objective "oekd".

    Returns:
        ``family`` and ``baseline`` (accuracy in percent, one entry per student), ``gain_points`` and ``gain_percent``
        (gain of the family, one entry per student), ``ensemble`` (accuracy in percent, or None) and ``minutes``
        (minutes of training on a GTX 1080 Ti by "ensemble", "sequential" and "parallel", or None).
    """
    tables, dataset = paper_tables(), _name_in_paper(dataset)
    row = tables["accuracy"].get(dataset, {}).get(model)
    if row is None or num_students != STUDENTS or objective != "oekd" or not WidthRule(widths).is_default(STUDENTS):
        return None
    pairs = list(zip(row["ensemble"], row["baseline"], strict=True))
    errors = tables["ensemble_error_percent"]
    errors = dict(zip(errors["columns"], errors["paper"], strict=True))
    error = errors.get(f"{dataset}/{model}")
    return {
        "family": row["ensemble"],
        "baseline": row["baseline"],
        "gain_points": [family - alone for family, alone in pairs],
        "gain_percent": [100.0 * (family - alone) / alone for family, alone in pairs],
        "ensemble": None if error is None else 100.0 - error,
        "minutes": _minutes(tables["training_minutes_1080ti"].get(dataset), model),
    }


def paper_ablation(name: str) -> dict[str, list[float]]:
    """Return accuracies in percent of students 1 to 5 and their ensemble for each value of an ablated option.

    The ablations are those of ResNet110 on CIFAR-100.
    """
    return paper_tables()["ablation_cifar100_resnet110"][name]


def _name_in_paper(dataset: str) -> str:
    name = known_name(dataset) or dataset
    return "imagenet" if name == "imagenet_1k" else name


def _minutes(table: dict[str, Any] | None, model: str) -> dict[str, int] | None:
    if table is None or model not in table["models"]:
        return None
    place = table["models"].index(model)
    return {way: table[way][place] for way in ("ensemble", "sequential", "parallel")}
