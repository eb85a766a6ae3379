"""Reproduce a recipe over seeds: ``python -m oekd_fast.reproduce --recipe NAME --seeds 5``.

A family and its baselines a seed, each in a run folder of its own; what is finished is not trained again. Results are
written after every seed: results.json, results.md, results.png.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

try:
    from rich.console import Console
except ImportError as error:
    raise ImportError("the trainer needs more packages: pip install 'oekd_fast[train]'") from error

from oekd_fast.config.command_line import RecipeOptions, parse_recipe_options, recipe_table
from oekd_fast.config.recipes import RecipeError, get_recipe
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import DataError
from oekd_fast.paper.expected import papers_ablation
from oekd_fast.reproduction.ablations import Ablation, ablate
from oekd_fast.reproduction.results import gather, measured_before, write
from oekd_fast.reproduction.seeds import run, seed_config
from oekd_fast.reproduction.timing import time_epochs
from oekd_fast.runs.checkpoint import CheckpointError
from oekd_fast.runs.host_memory import keep_freed_memory
from oekd_fast.runs.interrupt import Interrupted
from oekd_fast.runs.phase import TrainingDiverged
from oekd_fast.runs.run_folder import RunFolderError


@dataclass(frozen=True)
class ReproduceOptions(RecipeOptions):
    """Train a recipe's family and baselines over seeds, and state mean and spread beside the paper's numbers."""

    seeds: int = 5
    """Runs, in seed-<k>/ of output_dir, k from `seed` on; finished ones are not trained again."""
    timing: bool = False
    """Also time an epoch of the family against its students one after the other (the paper's Figure 2b)."""
    ablations: tuple[Ablation, ...] = ()
    """Also train the families of the paper's Tables 7 (alpha), 8 (beta_gamma) and 9 (temperature)."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds: expected an integer >= 1, got {self.seeds}")


def reproduce(
    recipe: str,
    config: TrainConfig,
    seeds: int = 5,
    *,
    timing: bool = False,
    ablations: tuple[Ablation, ...] = (),
    console: Console | None = None,
) -> dict[str, Any]:
    """Run the recipe called `recipe` as `config`, which `recipe_config` made, in ``config.output_dir``.

    Args:
        seeds: how many, from ``config.seed`` on.
        timing: also measure epochs.
        ablations: which of the paper's to train too. What an earlier call measured of these two stays in the results.

    Returns:
        What results.json holds.

    Raises:
        RecipeError: there is no such recipe, or it is for another data set.
        RunFolderError: a seed's folder was trained otherwise; the message names the fields.
        Interrupted: SIGINT or SIGTERM; the same call continues.
        Others: as `train`.
    """
    protocol = get_recipe(recipe)
    protocol.config(dataset=config.dataset)
    console, folder = console or Console(), reproduction_folder(recipe, config)
    config = replace(config, baseline=True, track_test=True, output_dir=folder)
    numbers = [config.seed + k for k in range(seeds)]
    summaries: dict[int, dict[str, Any]] = {}
    results: dict[str, Any] = {}
    before = measured_before(folder, config)
    for seed in numbers:
        summaries[seed] = run(seed_config(config, folder, seed), console)
        results = gather(protocol, config, summaries, numbers) | before
        write(folder, results)
    if timing:
        results["timing"] = time_epochs(config)
        write(folder, results)
    for name in ablations:
        sweep = ablate(name, config, folder, numbers, console)
        results["ablations"][name] = sweep | {"paper": papers_ablation(name), "seeds": numbers}
        write(folder, results)
    return results


def reproduction_folder(recipe: str, config: TrainConfig) -> Path:
    """``config.output_dir``, by default a folder of the recipe's name."""
    return config.output_dir or Path("runs", "reproduce", *recipe.split("/"))


def main() -> int:
    """The command line; returns the exit status."""
    console, errors = Console(), Console(stderr=True)
    try:
        options = parse_recipe_options(ReproduceOptions, "python -m oekd_fast.reproduce")
        if options.list_recipes:
            console.print(recipe_table())
            return 0
        if options.recipe is None:
            raise RecipeError("recipe: expected a name, --list-recipes shows all, got none")
        keep_freed_memory()
        reproduce(
            options.recipe,
            options.config,
            options.seeds,
            timing=options.timing,
            ablations=options.ablations,
            console=console,
        )
    except (Interrupted, KeyboardInterrupt) as stopped:
        console.print("Stopped; what was done is saved, and the same command continues.", soft_wrap=True)
        return 128 + getattr(stopped, "signal_number", 2)
    except (DataError, RunFolderError, CheckpointError, TrainingDiverged, ValueError, OSError) as error:
        errors.print(f"error: {error}", soft_wrap=True, markup=False)
        return 1
    folder = reproduction_folder(options.recipe, options.config)
    console.print((folder / "results.md").read_text(), soft_wrap=True, markup=False)
    console.print(f"Results: {folder / 'results.md'}, .json, .png", soft_wrap=True, markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
