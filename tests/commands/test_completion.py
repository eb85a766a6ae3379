"""Scripts for completion, as bash runs them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from oekd_fast.__main__ import COMMANDS, main

BASH = shutil.which("bash")
needs_bash = pytest.mark.skipif(BASH is None, reason="there is no bash")
# Calls the function that is registered for the program, as bash does at a tab, and prints what it suggests.
TAB = """
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
[[ $(complete -p oekd-fast) =~ -F\\ ([^ ]+) ]] && "${BASH_REMATCH[1]}"
printf '%s\\n' "${#COMPREPLY[@]}" "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory) -> dict[str, Path]:
    """Return the file with the script of each shell."""
    folder, files = tmp_path_factory.mktemp("completion"), {}
    for shell in ("bash", "zsh", "fish"):
        files[shell] = folder / shell
        with pytest.MonkeyPatch.context() as patch, files[shell].open("w") as file:
            patch.setattr("sys.stdout", file)
            assert main(["--completion", shell]) == 0
    return files


def suggested(script: Path, *words: str) -> list[str]:
    """Return what bash suggests for the last of `words`."""
    command = [BASH, "--norc", "-c", TAB, "tab", str(script), "oekd-fast", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    assert done.stderr == ""
    count, *found = done.stdout.splitlines()
    assert int(count) == len([word for word in found if word])
    return sorted(word for word in found if word)


@needs_bash
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tr"], ["train"]),
        (["re"], ["report", "reproduce"]),
        (["--v"], ["--version"]),
        (["--completion", "z"], ["zsh"]),
        (["train", "--mod"], ["--model"]),
        (["train", "--dry"], ["--dry-run"]),
        (["train", "--model", "resnet1"], ["resnet101", "resnet110", "resnet152", "resnet18"]),
        (["train", "--epochs", "3", "--precision", ""], ["auto", "bf16", "fp16", "fp32"]),
        (["train", "--dataset", "cifar"], ["cifar10", "cifar100"]),
        (["train", "--recipe", "evidence/"], ["evidence/digits/resnet20", "evidence/fashion_mnist/resnet20"]),
        (["reproduce", "--see"], ["--seed", "--seeds"]),
        (["reproduce", "--ablations", "alpha", "t"], ["temperature"]),
        (["pick", "runs/x", "--runtime", "o"], ["onnx"]),
        (["check-data", "digits", "--max-c"], ["--max-classes"]),
        (["report", "ru"], []),  # bash completes paths then
        (["train", "--dataset", "path/"], []),
    ],
)
def test_bash_completes_commands_options_and_names(scripts, words, expected):
    assert suggested(scripts["bash"], *words) == expected


@needs_bash
def test_bash_completes_all_commands_and_options(scripts):
    assert suggested(scripts["bash"], "") == sorted([*COMMANDS, "--completion", "--help", "--version", "-h"])
    options = suggested(scripts["bash"], "train", "--")
    assert {"--widths", "--resume", "--no-resume", "--recipe", "--version"} <= set(options)


@needs_bash
def test_bash_completes_paths_where_nothing_else_fits(scripts):
    line = f"source {scripts['bash']}; complete -p oekd-fast"
    done = subprocess.run([BASH, "--norc", "-c", line], capture_output=True, text=True, check=True)
    assert "-o default" in done.stdout


@pytest.mark.parametrize(("shell", "beginning"), [("zsh", "#compdef oekd-fast\n"), ("fish", "# ")])
def test_scripts_of_the_other_shells_know_the_same_words(scripts, shell, beginning):
    text = scripts[shell].read_text()
    assert text.startswith(beginning)
    for word in (*COMMANDS, "--model", "resnet110", "evidence/digits/resnet20"):
        assert word in text


def test_a_shell_that_tyro_does_not_know_is_one_line(monkeypatch, capsys):
    def cli(*_, **__):
        raise AssertionError("as tyro 1.0.0 does for fish")

    monkeypatch.setattr("tyro.cli", cli)
    assert main(["--completion", "fish"]) == 1
    output, errors = capsys.readouterr()
    assert output == "" and errors.startswith("error: completion: expected a newer version of tyro for fish, got ")


def test_without_tyro_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "oekd_fast.completion", raising=False)
    monkeypatch.setitem(sys.modules, "tyro", None)  # makes its import fail
    assert main(["--completion", "bash"]) == 1
    assert capsys.readouterr().err == "error: completion needs more packages: pip install 'oekd_fast[train]'\n"
