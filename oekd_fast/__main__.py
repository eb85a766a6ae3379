"""The command ``oekd-fast``, which is ``python -m oekd_fast`` too: all commands under one name.

Neither torch nor the packages of the trainer are imported before a command needs them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

from oekd_fast import __version__

PROGRAM = "oekd-fast"
# What each command does; `oekd_fast.check_data` is the module of check-data.
COMMANDS = {
    "train": "Train a family of students by online ensemble distillation.",
    "report": "Write an HTML page with the results of finished runs.",
    "reproduce": "Train a recipe over seeds and compare it with the paper.",
    "export": "Write students of a finished run as ONNX files or programs.",
    "pick": "Pick the student of a finished run that fits a budget.",
    "check-data": "Check the splits, classes and images of a data set.",
}
# What to try first, and what it shows; each line can be copied as it is.
EXAMPLES = {
    "train --dry-run": "its plan, time and memory",
    "train --epochs 3 --output-dir runs/first": "five students of ResNet-20",
    "report runs/first": "a page of the results",
    "pick runs/first --max-parameters 100k": "its best small student",
    "export runs/first --students 3": "student 3 as an ONNX file",
    "check-data digits": "splits, classes, copies",
    "reproduce --list-recipes": "recipes of the paper",
    "train --help": "all options of a command",
}
SHELLS = ("bash", "zsh", "fish")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the command line names and return the exit status.

    Args:
        arguments: the command line; that of the process by default.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    match arguments:
        case []:
            print(overview())
        case ["-h" | "--help", *_]:
            print(usage())
        case ["--version", *_]:
            print(f"oekd_fast {__version__}")
        case ["--completion", *shells]:
            return _print_completion(shells)
        case [name, *rest] if name in COMMANDS:
            return _run(name, rest)
        case [name, *_]:
            return _fail(f"command: {_near(name)}expected one of {', '.join(COMMANDS)}, got {name!r}")
    return 0


def overview() -> str:
    """Return what can be done, in ten lines of at most 80 characters."""
    commands = {f"{PROGRAM} {command}": text for command, text in EXAMPLES.items()}
    width = max(map(len, commands))
    lines = [f"{command:{width}}  # {text}" for command, text in commands.items()]
    first = f"{PROGRAM} {__version__} trains a family of compressed models in one run. For example:"
    return "\n".join([first, *lines, f"{PROGRAM} --help lists the commands, {PROGRAM} COMMAND --help its options."])


def usage() -> str:
    """Return the commands and the options that all of them share."""
    options = {
        "--completion SHELL": f"Print the completion script of a shell: {', '.join(SHELLS)}.",
        "--version": "Print the version and exit.",
        "-h, --help": "Show this text, or after a command its options.",
    }
    return "\n".join(
        [f"usage: {PROGRAM} COMMAND [OPTIONS]", "", "commands:", *_listed(COMMANDS), "", "options:", *_listed(options)]
    )


def _listed(items: dict[str, str]) -> list[str]:
    width = max(map(len, items))
    return [f"  {name:{width}}  {text}" for name, text in items.items()]


def _run(name: str, arguments: list[str]) -> int:
    try:
        command = import_module(f"oekd_fast.{name.replace('-', '_')}")
    except ImportError as error:  # a package of an extra; the message says which extra
        return _fail(str(error), status=1)
    return command.main(arguments, f"{PROGRAM} {name}")


def _print_completion(shells: list[str]) -> int:
    shell = " ".join(shells)
    if shell not in SHELLS:
        return _fail(f"completion: expected one of {', '.join(SHELLS)}, got {shell!r}")
    try:
        from oekd_fast.completion import completion_script

        print(completion_script(PROGRAM, COMMANDS, shell))
    except (ImportError, ValueError) as error:
        return _fail(str(error), status=1)
    return 0


def _near(name: str) -> str:
    near = get_close_matches(name, COMMANDS)
    return f"did you mean {' or '.join(near)}? " if near else ""


def _fail(message: str, status: int = 2) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
