"""Train a family of students: ``python -m oekd_fast.train --help``, or ``train(TrainConfig(...))`` from Python.

The module itself can be called like its function `train`. The package and its submodule share the name ``train``, so
``from oekd_fast import train`` is this module, whatever was imported before.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

try:
    from rich.console import Console
except ImportError as error:
    raise ImportError("the trainer needs more packages: pip install 'oekd_fast[train]'") from error

from oekd_fast.common.text import print_line, replace_unencodable_output
from oekd_fast.config.command_line import RecipeOptions, parse_recipe_options, recipe_table
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.runs.console import RunConsole, finish_output, warnings_as_lines

if TYPE_CHECKING:
    from oekd_fast.results.train_result import TrainResult

__all__ = ["main", "train"]


@dataclass(frozen=True)
class TrainOptions(RecipeOptions):
    """Train a family of students by online ensemble distillation."""

    dry_run: bool = False
    """Show what the run would train, its time and its memory, from some real steps, write nothing and exit."""


def train(config: TrainConfig, console: Console | None = None) -> TrainResult:
    """Train the family of students that `config` describes, and with `config.baseline` each student alone.

    Args:
        config: what to train and how; results are written to `config.run_folder`.
        console: where messages and progress are shown; standard output by default.

    Returns:
        The content of summary.json, as a dictionary that shows itself as a table and a picture and knows its students.

    Raises:
        ValueError: the config does not fit the data, the model, the device or the run folder.
        OSError: a file is missing or cannot be written.
        CheckpointError: a checkpoint cannot be read or written.
        TrainingDiverged: the loss or a weight is not finite.
        Interrupted: SIGINT, SIGTERM, SIGHUP or a closed output; the run is saved, and ``resume=True`` continues it.
    """
    # These import torch, which --help does not need.
    from oekd_fast.results.train_result import TrainResult
    from oekd_fast.runs.run import train as run

    return TrainResult(run(config, console), config.run_folder, own=True)


def main(arguments: Sequence[str] | None = None, prog: str = "python -m oekd_fast.train") -> int:
    """Run the command line and return the exit status.

    Args:
        arguments: the command line; that of the process by default.
        prog: the command, for usage and errors.
    """
    replace_unencodable_output()
    console, errors = RunConsole(), RunConsole(stderr=True)
    try:
        options = parse_recipe_options(TrainOptions, prog, arguments)
        if options.list_recipes:
            console.print(recipe_table())
            return 0
        with warnings_as_lines(errors):
            return _run(options, console, errors)
    except (ImportError, TypeError, ValueError) as error:
        print_line(errors, f"error: {error}")
        return 1
    finally:
        finish_output(console, errors)


def _run(options: TrainOptions, console: RunConsole, errors: RunConsole) -> int:
    from oekd_fast.distributed.agreement import OtherRankError
    from oekd_fast.distributed.rendezvous import is_quiet_rank, rank_prefix
    from oekd_fast.distributed.world import LostRankError
    from oekd_fast.runs.checkpoint import CheckpointError
    from oekd_fast.runs.host_memory import keep_freed_memory
    from oekd_fast.runs.interrupt import Interrupted
    from oekd_fast.runs.phase import TrainingDiverged
    from oekd_fast.runs.summary import print_summary

    keep_freed_memory()
    console.quiet = is_quiet_rank()
    config = options.config
    try:
        if options.dry_run:
            return _plan(config, console)
        summary = train(config, console)
    except Interrupted as stopped:
        print_line(errors if console.failure else console, stopped)
        return 128 + stopped.signal_number
    except OtherRankError:  # that rank prints its error
        return 1
    except (CheckpointError, LostRankError, TrainingDiverged, ValueError, OSError) as error:
        print_line(errors, f"error: {rank_prefix()}{error}")
        return 1
    print_summary(console, summary)
    print_line(console, f"Run folder: {config.run_folder}")
    if console.failure is not None:
        reason = f"the output cannot be written ({console.failure.strerror})"
        print_line(errors, f"{reason}, the run is complete: {config.run_folder}")
    return 0


def _plan(config: TrainConfig, console: RunConsole) -> int:
    from oekd_fast.runs.dry_run import dry_run
    from oekd_fast.runs.show_plan import print_plan

    try:
        print_plan(console, dry_run(config))
    except KeyboardInterrupt:  # there is nothing to save
        return 128 + signal.SIGINT
    return 0


class _CallableModule(ModuleType):
    """A module that can be called like its function `train`."""

    def __call__(self, config: TrainConfig, console: Console | None = None) -> TrainResult:
        """Train the family of students that `config` describes; see `train`."""
        return train(config, console)


sys.modules[__name__].__class__ = _CallableModule

if __name__ == "__main__":
    sys.exit(main())
