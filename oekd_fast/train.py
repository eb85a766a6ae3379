"""Train a family of students: ``python -m oekd_fast.train --help``, or ``train(TrainConfig(...))`` from Python."""

from __future__ import annotations

import sys

try:
    from rich.console import Console
except ImportError as error:
    raise ImportError("the trainer needs more packages: pip install 'oekd_fast[train]'") from error

from oekd_fast.config.command_line import RecipeOptions, parse_recipe_options, recipe_table
from oekd_fast.data import DataError
from oekd_fast.runs.checkpoint import CheckpointError
from oekd_fast.runs.host_memory import keep_freed_memory
from oekd_fast.runs.interrupt import Interrupted
from oekd_fast.runs.phase import TrainingDiverged
from oekd_fast.runs.run import train
from oekd_fast.runs.run_folder import RunFolderError
from oekd_fast.runs.summary import summary_table

__all__ = ["main", "train"]


def main() -> int:
    """The command line; returns the exit status."""
    console = Console()
    try:
        options = parse_recipe_options(RecipeOptions, "python -m oekd_fast.train")
        if options.list_recipes:
            console.print(recipe_table())
            return 0
        config = options.config
        keep_freed_memory()
        summary = train(config, console)
    except Interrupted as stopped:
        console.print(str(stopped), soft_wrap=True, markup=False)
        return 128 + stopped.signal_number
    except (DataError, RunFolderError, CheckpointError, TrainingDiverged, ValueError, OSError) as error:
        Console(stderr=True).print(f"error: {error}", soft_wrap=True, markup=False)
        return 1
    console.print(summary_table(summary))
    console.print(f"Run folder: {config.run_folder}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
