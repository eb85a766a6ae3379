"""``oekd-fast``: which command runs, what is shown without one, and what it imports."""

import os
import subprocess
import sys
import textwrap
from importlib import import_module
from pathlib import Path

import pytest

from oekd_fast import __main__ as program
from oekd_fast import __version__
from oekd_fast.__main__ import COMMANDS, main

from .test_command_lines import PARSERS

ROOT = Path(__file__).resolve().parents[2]


def outcome(*arguments, capsys):
    """Return the exit status, the output and the errors."""
    try:
        status = main(arguments)
    except SystemExit as exit_:
        status = exit_.code
    return status, *capsys.readouterr()


def test_without_arguments_it_shows_what_can_be_done_in_ten_lines(capsys):
    status, output, errors = outcome(capsys=capsys)
    lines = output.splitlines()
    assert (status, errors, len(lines)) == (0, "", 10)
    assert max(map(len, lines)) <= 80
    examples = [line.partition("#")[0].split() for line in lines[1:-1]]
    assert {command for _, command, *_ in examples} == set(COMMANDS)
    for name, command, *arguments in examples:
        assert name == "oekd-fast"
        if "--help" not in arguments:
            PARSERS[command.replace("-", "_")](arguments)


def test_the_help_lists_the_commands_as_they_describe_themselves(capsys):
    status, output, errors = outcome("--help", capsys=capsys)
    assert (status, errors) == (0, "") and outcome("-h", capsys=capsys)[1] == output
    assert output.startswith("usage: oekd-fast COMMAND [OPTIONS]\n")
    assert max(map(len, output.splitlines())) <= 80
    for name, text in COMMANDS.items():
        line = next(line for line in output.splitlines() if line.split()[:1] == [name])
        assert line.endswith(f"  {text}")
        assert text in " ".join(outcome(name, "--help", capsys=capsys)[1].replace("│", " ").split())


@pytest.mark.parametrize("arguments", [["--version"], *([name, "--version"] for name in COMMANDS)])
def test_version(arguments, capsys):
    assert outcome(*arguments, capsys=capsys) == (0, f"oekd_fast {__version__}\n", "")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_the_help_of_its_module_under_its_own_name(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    status, output, _ = outcome(name, "--help", capsys=capsys)
    module = import_module(f"oekd_fast.{name.replace('-', '_')}")
    monkeypatch.setattr(sys, "argv", ["x", "--help"])
    with pytest.raises(SystemExit):
        module.main()
    of_module = capsys.readouterr().out
    assert status == 0 and output.startswith(f"usage: oekd-fast {name} ")
    assert of_module.startswith(f"usage: {sys.argv[0] and 'python -m'} {module.__name__} ")
    assert output.split("\n\n", 1)[1] == of_module.split("\n\n", 1)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "command: did you mean train? expected one of train, report, reproduce, export, pick, check-data"),
        (["check_data", "x"], "command: did you mean check-data? expected one of train, "),
        (["zzz"], "command: expected one of train, report, reproduce, export, pick, check-data, got 'zzz'"),
        (["--epochs", "3"], "command: expected one of train, report, reproduce, export, pick, check-data, got "),
        (["--completion"], "completion: expected one of bash, zsh, fish, got ''"),
        (["--completion", "tcsh"], "completion: expected one of bash, zsh, fish, got 'tcsh'"),
    ],
)
def test_an_unknown_command_is_one_line(arguments, message, capsys):
    status, output, errors = outcome(*arguments, capsys=capsys)
    assert (status, output) == (2, "")
    assert errors.startswith(f"error: {message}") and errors.count("\n") == 1


def test_an_error_of_a_command_is_its_own(capsys):
    status, output, errors = outcome("pick", "nowhere", "--max-ms", "-1", capsys=capsys)
    assert (status, output) == (1, "") and errors.startswith("error: max_ms: expected ")


def test_the_console_script_is_declared():
    tomllib = pytest.importorskip("tomllib", reason="tomllib, which reads pyproject.toml, needs Python 3.11")
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {program.PROGRAM: "oekd_fast.__main__:main"}


def in_a_process(code: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"}, cwd=ROOT)


def test_nothing_is_imported_before_a_command_needs_it():
    code = """
    import sys
    from oekd_fast.__main__ import main
    for arguments in ([], ["--help"], ["--version"], ["trian"]):
        main(arguments)
    print([name for name in ("torch", "numpy", "rich", "tyro") if name in sys.modules])
    """
    assert in_a_process(code).stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("missing", ["rich", "tyro"])
def test_without_the_extras_one_line_says_what_to_install(missing):
    code = """
    import sys
    sys.modules[sys.argv[1]] = None  # makes its import fail
    from oekd_fast.__main__ import COMMANDS, main
    for arguments in ([name, "--help"] for name in COMMANDS):
        print(main(arguments))
    """
    done = in_a_process(code, missing)
    assert done.stdout.split() == ["1"] * len(COMMANDS)
    lines = done.stderr.splitlines()
    assert len(lines) == len(COMMANDS)
    for line in lines:
        assert line.startswith("error: ") and "needs more packages: pip install 'oekd_fast[train" in line
