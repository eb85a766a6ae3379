"""Command lines made from dataclasses: an option for each field, with help from its docstring, by tyro."""

from __future__ import annotations

import ast
import inspect
import os
import sys
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, field, fields, make_dataclass
from itertools import pairwise
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from oekd_fast import __version__
from oekd_fast.config.section import choices


def parse(
    owner: type,
    prog: str,
    arguments: Sequence[str] | None = None,
    *,
    groups: Mapping[str, type] | None = None,
    defaults: Mapping[str, Any] | None = None,
    skip: Collection[str] = (),
) -> dict[str, Any]:
    """Parse a command line and return the value of each option by the name of its field.

    Values are converted to the types of the fields, but choices and bounds are not checked: the dataclasses do so when
    they are constructed, and their errors suggest the nearest choice.

    Args:
        owner: dataclass whose fields are options; fields without a default are positional arguments. Its docstring
            describes the command.
        prog: the command, for usage and errors.
        arguments: the command line; that of the process by default.
        groups: dataclasses whose fields are options as well, by the title of their group in ``--help``.
        defaults: values of options that differ from the defaults of their fields.
        skip: fields of `owner` that are not options.

    Raises:
        ImportError: tyro is not installed.
        SystemExit: after ``--help`` and ``--version``, or if an argument cannot be parsed; the reason is printed.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if "--version" in arguments:
        print(f"oekd_fast {__version__}")
        raise SystemExit(0)
    try:
        import tyro
    except ImportError as error:
        raise ImportError(f"{prog} needs more packages: pip install 'oekd_fast[train]'") from error
    groups, defaults = groups or {}, defaults or {}
    version = Annotated[
        bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help="Print the version and exit.", help_behavior_hint="")
    ]
    members = [
        *_members(owner, defaults, skip),
        ("version", version, field(default=False)),
        *((title, _mirror(group, defaults), field()) for title, group in groups.items()),
    ]
    try:
        parsed = tyro.cli(
            make_dataclass("Options", members, kw_only=True),
            prog=prog,
            description=_summary(owner),
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.PositionalRequiredArgs),
        )
    except BrokenPipeError:  # the reader of --help, such as head, has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still in the buffer
        raise SystemExit(0) from None
    values = {}
    for name, value in vars(parsed).items():
        values |= asdict(value) if name in groups else {name: value}
    del values["version"]
    return values


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


def _mirror(owner: type, defaults: Mapping[str, Any]) -> type:
    """Return a dataclass with the fields and the description of `owner` that does not check its values."""
    return make_dataclass(owner.__name__, _members(owner, defaults), namespace={"__doc__": _summary(owner)})


def _members(owner: type, defaults: Mapping[str, Any], skip: Collection[str] = ()) -> list[tuple[str, Any, Field[Any]]]:
    """Return the fields of `owner` as `make_dataclass` takes them, with their appearance in ``--help``."""
    texts, hints, found = field_docs(owner), get_type_hints(owner), []
    for item in fields(owner):
        if item.name in skip:
            continue
        hint, default = hints[item.name], defaults.get(item.name, item.default)
        appearance = _appearance(texts[item.name], hint, item.metadata)
        if choices(hint):
            hint = str | None if type(None) in get_args(hint) else str
        annotated = Annotated[hint, appearance]
        found.append((item.name, annotated, field() if default is MISSING else field(default=default)))
    return found


def _appearance(text: str, hint: Any, metadata: Mapping[str, Any]) -> object:
    """Return how ``--help`` shows an option.

    Args:
        text: what the option does.
        hint: type of its field.
        metadata: metadata of its field; "unset" describes the default None.
    """
    import tyro

    def default(label: str) -> str:
        if label in ("", "None"):
            return f"(default: {metadata['unset']})" if metadata.get("unset") else ""
        return f"(default: {label})" if hint is not bool else f"(default: {'on' if label == 'True' else 'off'})"

    return tyro.conf.arg(help=text, help_behavior_hint=default, metavar=metavar(hint, metadata))


def metavar(hint: Any, metadata: Mapping[str, Any]) -> str | None:
    """Return what stands for the value of an option in ``--help``; None leaves it to tyro.

    Args:
        hint, metadata: type and metadata of its field; "metavar" replaces the name of the type.
    """
    if values := choices(hint):
        return "{" + ",".join(values) + "}"
    if type(None) not in get_args(hint):
        return metadata.get("metavar")
    (kind,) = (kind for kind in get_args(hint) if kind is not type(None))
    repeated = get_origin(kind) is tuple
    kind = get_args(kind)[0] if repeated else kind
    name = {str: "STR", bool: "{True,False}"}.get(kind, kind.__name__.upper())
    return f"{name} [{name} ...]" if repeated else name


def _summary(owner: type) -> str:
    """Return the first paragraph of a docstring."""
    return inspect.getdoc(owner).partition("\n\n")[0]
