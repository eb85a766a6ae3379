"""Command lines that take a recipe: its fields are the defaults of all other options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from rich.box import SIMPLE_HEAD
from rich.table import Table

from oekd_fast.config.objectives import OBJECTIVES
from oekd_fast.config.recipes import get_recipe, recipe_names
from oekd_fast.config.train_config import OBJECTIVES_OWN, TrainConfig


@dataclass(frozen=True)
class RecipeOptions:
    """Train a family of students at once by online ensemble knowledge distillation."""

    config: TrainConfig = field(default_factory=TrainConfig)
    recipe: str | None = None
    """Takes the defaults of all other options from a named protocol; --epochs scales its schedule."""
    list_recipes: bool = False
    """Show the recipes and do nothing."""


Options = TypeVar("Options", bound=RecipeOptions)


def parse_arguments(options: type[Options], prog: str, arguments: Sequence[str] | None = None, **defaults) -> Options:
    """Read the command line (`arguments`; None: the process's) as an `options`.

    Args:
        prog: how the command is called.
        defaults: of the fields of `options` and of the config, below any recipe's.

    Raises:
        RecipeError: there is no such recipe, or it is for another data set.
        ValueError: there is no such objective; the message has the nearest names.
        SystemExit: an argument cannot be understood, or --help; that is said.
    """
    import tyro

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    name, objective = _value_of("recipe", arguments), _value_of("objective", arguments)
    if objective is not None and objective not in OBJECTIVES:
        TrainConfig(objective=objective)  # says which are near, where tyro would list all

    def parse(config: TrainConfig) -> Options:
        return tyro.cli(
            options,
            prog=prog,
            args=arguments,
            default=options(config=config, **defaults),
            config=(tyro.conf.OmitArgPrefixes,),
        )

    recipe = None if name is None else get_recipe(name)
    config = TrainConfig() if recipe is None else recipe.config()
    # What other options depend on comes first: epochs scale a recipe's schedule, an objective has weights of its own.
    given = parse(config).config
    if recipe is not None:
        config = recipe.config(epochs=given.epochs, dataset=given.dataset)
    if given.objective != config.objective:
        own = OBJECTIVES[given.objective]
        config = replace(config, **{field: getattr(own, field) for field in OBJECTIVES_OWN})
    return parse(config)


def _value_of(option: str, arguments: list[str]) -> str | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{option}", nargs="?")
    return getattr(parser.parse_known_args(arguments)[0], option)


def recipe_table() -> Table:
    """All recipes: name, epochs, source."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("name", no_wrap=True)
    table.add_column("epochs", justify="right")
    table.add_column("source")
    for name in recipe_names():
        recipe = get_recipe(name)
        table.add_row(name, str(recipe.fields["epochs"]), recipe.source)
    return table
