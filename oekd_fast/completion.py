"""Completion of the command line in shells: scripts that tyro generates from the options of all commands."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from typing import Annotated, Any, Literal, Union, get_type_hints

try:
    import tyro
except ImportError as error:
    raise ImportError("completion needs more packages: pip install 'oekd_fast[train]'") from error

from oekd_fast.check_data import CheckDataOptions
from oekd_fast.config.command_line import GROUPS, RecipeOptions
from oekd_fast.config.data import DataConfig
from oekd_fast.config.model import ModelConfig
from oekd_fast.config.options import field_docs, metavar
from oekd_fast.config.recipes import recipe_names
from oekd_fast.config.section import choices
from oekd_fast.data.known import KNOWN
from oekd_fast.export import ExportConfig
from oekd_fast.models import architecture_names
from oekd_fast.pick import PickConfig
from oekd_fast.report import ReportConfig
from oekd_fast.reproduce import ReproduceOptions
from oekd_fast.train import TrainOptions

# Values that options take by name, besides those that their types list.
NAMES: Mapping[type, Mapping[str, Iterable[str]]] = {
    DataConfig: {"dataset": ("digits", *KNOWN)},
    ModelConfig: {"model": architecture_names()},
    RecipeOptions: {"recipe": recipe_names()},
}

_VERSION = (
    "version",
    Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help="Print the version.", help_behavior_hint="")],
    field(default=False),
)
# What follows the script of tyro, whose function suggests known words only: without any, the shell completes paths.
_PATHS = {
    "bash": """
_FUNCTION_or_path() {
  _FUNCTION
  [[ -n "${COMPREPLY[*]}" ]] || COMPREPLY=()
}
complete -o bashdefault -o default -F _FUNCTION_or_path PROGRAM
""",
    "zsh": """
(( compstate[nmatches] )) || _files
""",
    "fish": """
complete --command PROGRAM --force-files \\
    --condition 'not string match --quiet -- (commandline --current-token)"*" (_FUNCTION)'
""",
}


@dataclass(frozen=True)
class _Command:
    """Dataclasses whose fields are the options of a command, and the fields that are not."""

    sections: tuple[type, ...]
    skip: Collection[str] = ()


_COMMANDS = {
    "train": _Command((TrainOptions, *GROUPS.values()), skip=["config"]),
    "report": _Command((ReportConfig,)),
    "reproduce": _Command((ReproduceOptions, *GROUPS.values()), skip=["config"]),
    "export": _Command((ExportConfig,)),
    "pick": _Command((PickConfig,)),
    "check-data": _Command((CheckDataOptions,)),
}


def completion_script(program: str, commands: Mapping[str, str], shell: str) -> str:
    """Return a script that completes the commands of `program`, their options and the values of these.

    Everything else is completed as a path.

    Args:
        program: name of the program.
        commands: what each command does, by its name.
        shell: "bash", "zsh" or "fish".

    Raises:
        ValueError: the installed version of tyro does not know the shell.
    """
    kinds = [
        Annotated[_options(_COMMANDS[name]), tyro.conf.subcommand(name, prefix_name=False, description=text)]
        for name, text in commands.items()
    ]
    shells = Annotated[Literal[tuple(_PATHS)], tyro.conf.arg(help="Print this script.", help_behavior_hint="")]
    members = [("command", Union[tuple(kinds)]), ("completion", shells, field(default="bash")), _VERSION]  # noqa: UP007
    with redirect_stdout(io.StringIO()) as output, suppress(SystemExit):
        try:
            tyro.cli(
                make_dataclass("Root", members),
                prog=program,
                args=["--tyro-write-completion", shell, "-"],
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.PositionalRequiredArgs),
            )
        except AssertionError as error:
            raise ValueError(
                f"completion: expected a newer version of tyro for {shell}, got {tyro.__version__}"
            ) from error
    function = f"tyro_{program.replace('-', '_')}"  # the name that tyro gives it, after an underscore
    return output.getvalue() + _PATHS[shell].replace("FUNCTION", function).replace("PROGRAM", program)


def _options(command: _Command) -> type:
    """Return a dataclass with the options of a command, whose types list the names that they take."""
    members: list[tuple[str, Any, Any]] = []
    for section in command.sections:
        texts, hints = field_docs(section), get_type_hints(section)
        for item in fields(section):
            if item.name in command.skip:
                continue
            hint, default = hints[item.name], item.default
            names = tuple(name for owner in section.__mro__ for name in NAMES.get(owner, {}).get(item.name, ()))
            shown = metavar(hint, item.metadata)
            if default is None and choices(hint):  # "None" is no value of the command line
                hint, default = Literal[choices(hint)], choices(hint)[0]
            if names and default is not MISSING:  # a field without a default is no option
                hint, default, shown = Literal[names], default if default in names else names[0], "NAME"
            about = tyro.conf.arg(help=texts[item.name], help_behavior_hint="", metavar=shown)
            members.append((item.name, Annotated[hint, about], field(default=default)))
    return make_dataclass("Options", [*members, _VERSION], kw_only=True)
