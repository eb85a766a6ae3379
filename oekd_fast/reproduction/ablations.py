"""The paper's ablations (Tables 7 to 9): the family trained again with other weights and temperatures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.paper import Ablation
from oekd_fast.paper.expected import paper_ablation
from oekd_fast.reproduction.seeds import run, seed_config
from oekd_fast.reproduction.statistics import MEASURES, accuracies


@dataclass(frozen=True)
class Sweep:
    """One table of the paper: its number, and what each of its values changes; all else stays the recipe's."""

    table: int
    fields: Callable[[str], dict[str, float]]


SWEEPS: dict[Ablation, Sweep] = {
    "alpha": Sweep(7, lambda text: {"ce_weight": float(text)}),
    "beta_gamma": Sweep(
        8, lambda text: dict(zip(("feature_weight", "kd_weight"), map(float, text.split("/")), strict=True))
    ),
    "temperature": Sweep(9, lambda text: {"temperature": float(text)}),
}


def ablate(name: Ablation, config: TrainConfig, folder: Path, seeds: list[int], console: Console) -> dict[str, Any]:
    """Train the family at every value of the paper's table, in ``folder/ablations/<name>-<value>/seed-<k>``.

    Values that are the config's own are the runs that are in `folder` already.

    Returns:
        ``table``: its number in the paper; ``values``: {value: {measure: as `accuracies`}}.

    Raises:
        As `seeds.run`.
    """
    values = {}
    for value in paper_ablation(name):
        changed = replace(config, **SWEEPS[name].fields(value))
        own = changed.training_fields() == config.training_fields()
        place = folder if own else folder / "ablations" / f"{name}-{value.replace('/', '-')}"
        changed = replace(changed, baseline=own and config.baseline)
        summaries = [run(seed_config(changed, place, seed), console) for seed in seeds]
        values[value] = {measure: accuracies(summaries, measure) for measure in MEASURES}
    return {"table": SWEEPS[name].table, "values": values}
