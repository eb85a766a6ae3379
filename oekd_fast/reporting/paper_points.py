"""The paper's accuracies for a run's data set and network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from oekd_fast.data.registry import KNOWN, known_name
from oekd_fast.paper import paper_tables


@dataclass(frozen=True)
class PaperPoints:
    """Top-1 test accuracies of the paper, in percent, for its students 1 to 5; ensemble: of their mean logits."""

    alone: tuple[float, ...]
    family: tuple[float, ...]
    ensemble: float | None


def paper_points(
    dataset: str, model: str, num_students: int, tables: Mapping[str, Any] | None = None
) -> PaperPoints | None:
    """What the paper has for `model` on `dataset`, or None; its families are of five."""
    tables = paper_tables() if tables is None else tables
    name = _paper_name(dataset)
    rows = tables["accuracy"].get(name, {}).get(model)
    if rows is None or num_students != len(rows["ensemble"]):
        return None
    errors = tables["ensemble_error_percent"]
    error = dict(zip(errors["columns"], errors["paper"], strict=True)).get(f"{name}/{model}")
    return PaperPoints(
        alone=tuple(rows["baseline"]),
        family=tuple(rows["ensemble"]),
        ensemble=None if error is None else round(100 - error, 2),
    )


def _paper_name(dataset: str) -> str:
    hub_names = {known.hub_id: name for name, known in KNOWN.items()}
    name = known_name(dataset) or hub_names.get(dataset, dataset)
    return {"imagenet_1k": "imagenet"}.get(name, name)
