"""Command lines made from dataclasses: options in groups, help from docstrings, recipes as defaults."""

from __future__ import annotations

import argparse
import ast
import inspect
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, make_dataclass
from itertools import pairwise
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from rich.box import SIMPLE_HEAD
from rich.table import Table

from oekd_fast import __version__
from oekd_fast.config.data import DataConfig
from oekd_fast.config.distillation import DistillationConfig
from oekd_fast.config.model import ModelConfig
from oekd_fast.config.optimizer import OptimizerConfig
from oekd_fast.config.recipes import get_recipe, recipe_names
from oekd_fast.config.run import RunConfig
from oekd_fast.config.schedule import ScheduleConfig
from oekd_fast.config.section import Section, choices
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
    """Train a family of students at once by online ensemble knowledge distillation."""

    config: TrainConfig = field(default_factory=TrainConfig)
    recipe: str | None = field(default=None, metadata={"unset": "no recipe"})
    """Named protocol that sets the defaults of all other options; --epochs scales its schedule."""
    list_recipes: bool = False
    """List the recipes and exit."""


Options = TypeVar("Options")


def parse_recipe_options(options: type[Options], prog: str, arguments: Sequence[str] | None = None) -> Options:
    """Read a command line whose options are those of `TrainConfig` and the other fields of `options`.

    Args:
        options: `RecipeOptions` or a subclass.
        prog: the command, for usage and errors.
        arguments: the command line; those of the process by default.

    Raises:
        RecipeError: the recipe is unknown, or made for another data set.
        ValueError, TypeError: an option is outside its choices or bound, or contradicts another one.
        SystemExit: after ``--help`` and ``--version``, or if an argument cannot be parsed; the reason is printed.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    defaults = {item.name: item.default for item in fields(TrainConfig)}
    name = _value_of("recipe", arguments)
    if name is not None:
        recipe = get_recipe(name)
        given = _parse(options, prog, arguments, defaults | recipe.values())
        # These three options change the recipe's other values, so they are read first.
        adapted = recipe.values(**{key: given[key] for key in ("dataset", "epochs", "objective")})
        defaults |= adapted
    given = _parse(options, prog, arguments, defaults)
    if name is not None:
        given["dataset"] = defaults["dataset"]  # the recipe's name for it
    config = TrainConfig(**{key: given.pop(key) for key in defaults})
    return options(config=config, **given)


def parse_options(options: type[Options], prog: str, arguments: Sequence[str] | None = None) -> Options:
    """Read a command line whose options are the fields of the dataclass `options`; required fields are positional.

    Raises:
        As `parse_recipe_options`.
    """
    return options(**_parse(options, prog, list(sys.argv[1:] if arguments is None else arguments), {}))


def _parse(options: type, prog: str, arguments: list[str], config: Mapping[str, Any]) -> dict[str, Any]:
    """Parse the command line of `options` with the defaults `config` and return all values by name, unchecked."""
    import tyro

    if "--version" in arguments:
        print(f"oekd_fast {__version__}")
        raise SystemExit(0)
    version = Annotated[
        bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help="Print the version and exit.", help_behavior_hint="")
    ]
    members = [item for item in fields(options) if item.type != "TrainConfig"]
    command = make_dataclass("Command", [*_shown(options, members, {}), ("version", version, field(default=False))])
    groups = {
        name: make_dataclass(name, _shown(section, fields(section), config), namespace={"__doc__": _summary(section)})
        for name, section in (GROUPS.items() if config else ())
    }
    command = make_dataclass("Command", list(groups.items()), bases=(command,), kw_only=True)
    parsed = tyro.cli(
        command,
        prog=prog,
        description=_summary(options),
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.PositionalRequiredArgs),
    )
    values = {}
    for name, value in vars(parsed).items():
        values |= asdict(value) if name in groups else {name: value}
    del values["version"]
    return values


def _shown(
    owner: type, members: Sequence[Field[Any]], defaults: Mapping[str, Any]
) -> list[tuple[str, Any, Field[Any]]]:
    """Return the fields `members` of the dataclass `owner` as `make_dataclass` takes them, with their appearance."""
    texts, hints, found = field_docs(owner), get_type_hints(owner), []
    for item in members:
        hint = hints[item.name]
        appearance = _appearance(texts[item.name], hint, item.metadata)
        default = defaults.get(item.name, item.default)
        found.append(
            (
                item.name,
                # The sections check choices themselves, and suggest the nearest one.
                Annotated[str if choices(hint) else hint, appearance],
                field() if default is MISSING else field(default=default),
            )
        )
    return found


def _appearance(text: str, hint: Any, metadata: Mapping[str, Any]) -> object:
    """Return how ``--help`` shows an option.

    Args:
        text: what the option does.
        hint: its type.
        metadata: of its field. "unset" describes a default of None, "metavar" the values of a positional argument.
    """
    import tyro

    def default(label: str) -> str:
        if label in ("", "None"):
            return f"(default: {metadata['unset']})" if metadata.get("unset") else ""
        return f"(default: {label})" if hint is not bool else f"(default: {'on' if label == 'True' else 'off'})"

    optional = [kind for kind in get_args(hint) if kind is not type(None)]
    metavar = metadata.get("metavar")
    if values := choices(hint):
        metavar = "{" + ",".join(values) + "}"
    elif type(None) in get_args(hint) and len(optional) == 1:
        metavar = {str: "NAME", bool: "{True,False}"}.get(optional[0], optional[0].__name__.upper())
    return tyro.conf.arg(help=text, help_behavior_hint=default, metavar=metavar)


def _summary(owner: type) -> str:
    """Return the first paragraph of a docstring."""
    return inspect.getdoc(owner).partition("\n\n")[0]


def field_docs(owner: type) -> dict[str, str]:
    """Return the docstring below each field of a dataclass and of its base classes, on one line."""
    found = {}
    for base in reversed(owner.__mro__[:-1]):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        for statement, following in pairwise(definition.body):
            match statement, following:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found


def _value_of(option: str, arguments: list[str]) -> str | None:
    """Return the value of an option before the others can be parsed; None if it is not given."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{option}", nargs="?")
    return getattr(parser.parse_known_args(arguments)[0], option)


def recipe_table() -> Table:
    """Return a table of all recipes: name, epochs and source."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("name", no_wrap=True)
    table.add_column("epochs", justify="right")
    table.add_column("source")
    for name in recipe_names():
        recipe = get_recipe(name)
        table.add_row(name, str(recipe.fields["epochs"]), recipe.source)
    return table
