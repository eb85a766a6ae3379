"""Ablations of the paper (Tables 7 to 9): train the family with other loss weights and temperatures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.distributed.world import ALONE, World
from oekd_fast.paper import Ablation
from oekd_fast.paper.expected import paper_ablation
from oekd_fast.reproduction.seeds import run, seed_config
from oekd_fast.reproduction.statistics import MEASURES, accuracies


@dataclass(frozen=True)
class Sweep:
    """One ablation of the paper.

    Args:
        table: number of the table in the paper.
        fields: returns the fields of the config that a value of the table changes.
    """

    table: int
    fields: Callable[[str], dict[str, float]]


SWEEPS: dict[Ablation, Sweep] = {
    "alpha": Sweep(7, lambda text: {"ce_weight": float(text)}),
    "beta_gamma": Sweep(
        8, lambda text: dict(zip(("feature_weight", "kd_weight"), map(float, text.split("/")), strict=True))
    ),
    "temperature": Sweep(9, lambda text: {"temperature": float(text)}),
}


def ablate(
    name: Ablation, config: TrainConfig, folder: Path, seeds: list[int], console: Console, world: World = ALONE
) -> dict[str, Any]:
    """Train the family for every value of the paper's table, in ``folder/ablations/<name>-<value>/seed-<k>``.

    The value that equals that of `config` is not trained again; its runs are those in `folder`.

    Returns:
        ``table``, the number of the table, and ``values``, which maps each value and measure to the result of
        `accuracies`.

    Raises:
        Interrupted, RunFolderError: see `seeds.run`.
    """
    values = {}
    for value, changed, place in ablation_configs(name, config, folder):
        summaries = [run(seed_config(changed, place, seed), console, world) for seed in seeds]
        values[value] = {measure: accuracies(summaries, measure) for measure in MEASURES}
    return {"table": SWEEPS[name].table, "values": values}


def ablation_configs(name: Ablation, config: TrainConfig, folder: Path) -> Iterator[tuple[str, TrainConfig, Path]]:
    """Yield each value of the paper's table, the config of its runs, and the folder that holds them."""
    for value in paper_ablation(name):
        changed = replace(config, **SWEEPS[name].fields(value))
        own = changed.training_fields() == config.training_fields()
        place = folder if own else folder / "ablations" / f"{name}-{value.replace('/', '-')}"
        yield value, replace(changed, baseline=own and config.baseline), place
