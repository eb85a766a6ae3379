"""Command lines of the trainer: all fields of `TrainConfig` in groups, with recipes as defaults."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TypeVar

from rich.table import Table

from oekd_fast.common.tables import simple_table
from oekd_fast.config.data import DataConfig
from oekd_fast.config.distillation import DistillationConfig
from oekd_fast.config.model import ModelConfig
from oekd_fast.config.optimizer import OptimizerConfig
from oekd_fast.config.options import parse
from oekd_fast.config.recipes import get_recipe, recipe_names
from oekd_fast.config.run import RunConfig
from oekd_fast.config.schedule import ScheduleConfig
from oekd_fast.config.section import Section
from oekd_fast.config.train_config import TrainConfig

# Groups of options in --help, in order; "data" becomes the title "data options".
GROUPS: dict[str, type[Section]] = {
    "data": DataConfig,
    "model": ModelConfig,
    "distillation": DistillationConfig,
    "optimisation": OptimizerConfig,
    "schedule": ScheduleConfig,
    "run": RunConfig,
}


@dataclass(frozen=True)
class RecipeOptions:
    """Train a family of students by online ensemble distillation."""

    config: TrainConfig = field(default_factory=TrainConfig)
    recipe: str | None = field(default=None, metadata={"unset": "no recipe"})
    """Named protocol that sets the defaults of all other options; --epochs scales its schedule."""
    list_recipes: bool = False
    """List the recipes and exit."""


Options = TypeVar("Options", bound=RecipeOptions)


def parse_recipe_options(options: type[Options], prog: str, arguments: Sequence[str] | None = None) -> Options:
    """Read a command line whose options are the fields of `TrainConfig` and the other fields of `options`.

    Args:
        options: `RecipeOptions` or a subclass.
        prog: the command, for usage and errors.
        arguments: the command line; that of the process by default.

    Raises:
        ImportError: tyro is not installed.
        RecipeError: the recipe is unknown, or made for another data set.
        ValueError, TypeError: an option is outside its choices or bound, or contradicts another one.
        SystemExit: after ``--help`` and ``--version``, or if an argument cannot be parsed; the reason is printed.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    name = _value_of("recipe", arguments)
    defaults = {}
    if name is not None:
        recipe = get_recipe(name)
        given = parse(options, prog, arguments, groups=GROUPS, defaults=recipe.values(), skip=["config"])
        # These three options change the recipe's other values, so they are read first.
        defaults = recipe.values(**{key: given[key] for key in ("dataset", "epochs", "objective")})
    given = parse(options, prog, arguments, groups=GROUPS, defaults=defaults, skip=["config"])
    if name is not None:
        given["dataset"] = defaults["dataset"]  # the option may have its name on the hub
    config = TrainConfig(**{item.name: given.pop(item.name) for item in fields(TrainConfig)})
    return options(config=config, **given)


def _value_of(option: str, arguments: list[str]) -> str | None:
    """Return the value of an option before the others can be parsed; None if it is not given."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{option}", nargs="?")
    return getattr(parser.parse_known_args(arguments)[0], option)


def recipe_table() -> Table:
    """Return a table of all recipes: name, epochs and source."""
    table = simple_table()
    table.add_column("name", no_wrap=True)
    table.add_column("epochs", justify="right")
    table.add_column("source")
    for name in recipe_names():
        recipe = get_recipe(name)
        table.add_row(name, str(recipe.fields["epochs"]), recipe.source)
    return table
