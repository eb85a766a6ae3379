"""Reproduce a recipe over several seeds: ``python -m oekd_fast.reproduce --recipe NAME --seeds 5``.

Each seed trains a family and its baselines in a run folder of its own; finished runs are not trained again. The results
are written after each seed, to results.json, results.md and results.png.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

try:
    from rich.console import Console
except ImportError as error:
    raise ImportError("the trainer needs more packages: pip install 'oekd_fast[train]'") from error

from oekd_fast.common.text import print_line, replace_unencodable_output
from oekd_fast.config.command_line import RecipeOptions, parse_recipe_options, recipe_table
from oekd_fast.config.recipes import Recipe, RecipeError, get_recipe
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.paper import Ablation
from oekd_fast.runs.console import RunConsole, finish_output, warnings_as_lines


@dataclass(frozen=True)
class ReproduceOptions(RecipeOptions):
    """Train a recipe over seeds and compare it with the paper."""

    seeds: int = 5
    """Number of runs, with seeds from --seed on, in folders seed-<k> of --output-dir."""
    timing: bool = False
    """Also time an epoch of the family against its students one after the other (Figure 2b)."""
    ablations: tuple[Ablation, ...] = ()
    """Also train the ablations of Tables 7 (alpha), 8 (beta_gamma) and 9 (temperature)."""

    status: bool = False
    """Show which runs are finished, running or left, and the time that is left, and exit."""

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
    """Train a recipe over several seeds, in ``config.output_dir``.

    Errors of `oekd_fast.train` are raised as well.

    Args:
        recipe: name of the recipe.
        config: config of the recipe, from `recipe_config`.
        seeds: number of seeds, from ``config.seed`` on.
        timing: also time epochs.
        ablations: ablations of the paper to train as well. Timings and ablations of an earlier call stay in the
            results.
        console: where messages and progress are shown; standard output by default.

    Returns:
        The content of results.json.

    Raises:
        RecipeError: the recipe is unknown, or made for another data set.
        RunFolderError: the folder of a seed holds a run with another config; the message names the fields.
        FolderInUseError: another process writes to the folder of the reproduction, or to that of a seed.
        Interrupted: SIGINT, SIGTERM, SIGHUP or a closed output; the same call continues.
    """
    # These import torch, which --help does not need.
    from oekd_fast.distributed.agreement import failing_together
    from oekd_fast.distributed.rendezvous import joined
    from oekd_fast.paper.expected import paper_ablation
    from oekd_fast.reproduction.ablations import ablate
    from oekd_fast.reproduction.results import gather, measured_before, write
    from oekd_fast.reproduction.seeds import run, seed_config
    from oekd_fast.reproduction.timing import time_epochs
    from oekd_fast.runs.folder_lock import FolderLock
    from oekd_fast.runs.ranks import device_type

    protocol, config, folder, numbers = _plan(recipe, config, seeds)
    console = console or RunConsole()
    summaries: dict[int, dict[str, Any]] = {}
    results: dict[str, Any] = {}

    def keep() -> None:
        problem = write(folder, results) if world.is_main else None
        if problem is not None:
            print_line(console, problem)

    with joined(device_type(config.device), config.rank_timeout, config.join_timeout) as world, ExitStack() as stack:
        before: dict[str, Any] = {}
        with failing_together(world):
            if timing and world.size > 1:
                raise ValueError(f"timing: expected a single process, got {world.size}")
            if world.is_main:
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FolderLock(folder))
                before = measured_before(folder, config)
        for seed in numbers:
            summaries[seed] = run(seed_config(config, folder, seed), console, world)
            results = gather(protocol, config, summaries, numbers) | before
            keep()
        if timing:
            results["timing"] = time_epochs(config)
            keep()
        for name in ablations:
            sweep = ablate(name, config, folder, numbers, console, world)
            results.setdefault("ablations", {})[name] = sweep | {"paper": paper_ablation(name), "seeds": numbers}
            keep()
        return json.loads(world.from_main(json.dumps(results).encode())) if world.size > 1 else results


def _plan(recipe: str, config: TrainConfig, seeds: int) -> tuple[Recipe, TrainConfig, Path, list[int]]:
    """Return the recipe, the config of its runs, their folder, and their seeds."""
    protocol, folder = get_recipe(recipe), reproduction_folder(recipe, config)
    protocol.config(dataset=config.dataset)
    config = replace(config, baseline=True, track_test=True, output_dir=folder)
    return protocol, config, folder, [config.seed + k for k in range(seeds)]


def show_status(options: ReproduceOptions, console: Console) -> None:
    """Print a table of the runs that `options` asks for, and a line about the time that is left.

    Raises:
        RecipeError, RunFolderError: see `reproduce`.
    """
    from oekd_fast.common.tables import table_of_columns
    from oekd_fast.reproduction.status import columns, runs_of, statuses, summary_line

    _, config, folder, seeds = _plan(options.recipe, options.config, options.seeds)
    found = statuses(runs_of(config, folder, seeds, options.ablations), folder)
    table = table_of_columns(columns(found), ("trained",), console.width)
    if table is not None:
        console.print(table)
    print_line(console, summary_line(found))


def reproduction_folder(recipe: str, config: TrainConfig) -> Path:
    """Return ``config.output_dir``, or a folder in runs/reproduce named after the recipe if it is None."""
    return config.output_dir or Path("runs", "reproduce", *recipe.split("/"))


def main(arguments: Sequence[str] | None = None, prog: str = "python -m oekd_fast.reproduce") -> int:
    """Run the command line and return the exit status.

    Args:
        arguments: the command line; that of the process by default.
        prog: the command, for usage and errors.
    """
    replace_unencodable_output()
    console, errors = RunConsole(), RunConsole(stderr=True)
    try:
        options = parse_recipe_options(ReproduceOptions, prog, arguments)
        if options.list_recipes:
            console.print(recipe_table())
            return 0
        if options.recipe is None:
            raise RecipeError("recipe: expected a name, --list-recipes shows all, got none")
        if options.status:
            show_status(options, console)
            return 0
        with warnings_as_lines(errors):
            return _run(options, console, errors)
    except (ImportError, TypeError, ValueError) as error:
        print_line(errors, f"error: {error}")
        return 1
    finally:
        finish_output(console, errors)


def _run(options: ReproduceOptions, console: RunConsole, errors: RunConsole) -> int:
    from oekd_fast.distributed.agreement import OtherRankError
    from oekd_fast.distributed.rendezvous import is_quiet_rank, rank_prefix
    from oekd_fast.distributed.world import LostRankError
    from oekd_fast.runs.checkpoint import CheckpointError
    from oekd_fast.runs.host_memory import keep_freed_memory
    from oekd_fast.runs.interrupt import Interrupted
    from oekd_fast.runs.phase import TrainingDiverged

    keep_freed_memory()
    console.quiet = is_quiet_rank()
    try:
        reproduce(
            options.recipe,
            options.config,
            options.seeds,
            timing=options.timing,
            ablations=options.ablations,
            console=console,
        )
    except (Interrupted, KeyboardInterrupt) as stopped:
        stopped_line = "Stopped; finished work is saved, and the same command continues."
        print_line(errors if console.failure else console, stopped_line)
        return 128 + getattr(stopped, "signal_number", 2)
    except OtherRankError:  # that rank prints its error
        return 1
    except (CheckpointError, LostRankError, TrainingDiverged, ValueError, OSError) as error:
        print_line(errors, f"error: {rank_prefix()}{error}")
        return 1
    if console.quiet:
        return 0
    folder = reproduction_folder(options.recipe, options.config)
    for line in (folder / "results.md").read_text(encoding="utf-8").splitlines():
        print_line(console, line)
    picture = ", .png" if (folder / "results.png").exists() else ""
    print_line(console, f"Results: {folder / 'results.md'}, .json{picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
