"""Command lines of all commands: help, version, groups, errors."""

import dataclasses
import os
import subprocess
import sys
import textwrap

import pytest

from oekd_fast import __version__
from oekd_fast.check_data import CheckDataOptions
from oekd_fast.config.command_line import GROUPS, parse_recipe_options
from oekd_fast.config.options import field_docs, parse
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.export import ExportConfig
from oekd_fast.pick import PickConfig
from oekd_fast.report import ReportConfig
from oekd_fast.reproduce import ReproduceOptions
from oekd_fast.train import TrainOptions

PARSERS = {
    "train": lambda arguments: parse_recipe_options(TrainOptions, "python -m oekd_fast.train", arguments),
    "reproduce": lambda arguments: parse_recipe_options(ReproduceOptions, "python -m oekd_fast.reproduce", arguments),
    "report": lambda arguments: ReportConfig(**parse(ReportConfig, "python -m oekd_fast.report", arguments)),
    "pick": lambda arguments: PickConfig(**parse(PickConfig, "python -m oekd_fast.pick", arguments)),
    "export": lambda arguments: ExportConfig(**parse(ExportConfig, "python -m oekd_fast.export", arguments)),
    "check_data": lambda arguments: CheckDataOptions(
        **parse(CheckDataOptions, "python -m oekd_fast.check_data", arguments)
    ),
}


def printed(command, *arguments, capsys) -> str:
    with pytest.raises(SystemExit) as exit_:
        PARSERS[command](list(arguments))
    assert exit_.value.code == 0
    return capsys.readouterr().out


def unwrapped(text: str) -> str:
    """Return help without boxes and line breaks."""
    return " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize("width", [80, 60])
@pytest.mark.parametrize("command", PARSERS)
def test_help_fits_the_terminal(command, width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = printed(command, "--help", capsys=capsys).splitlines()
    if width < 80:
        lines = [line for line in lines if not line.startswith("usage:")]  # tyro does not wrap it
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)


@pytest.mark.parametrize("command", PARSERS)
def test_help_says_what_happens_by_default(command, capsys):
    text = printed(command, "--help", capsys=capsys)
    assert "None" not in text
    assert "--version" in text


def test_help_has_a_group_for_each_section(capsys):
    lines = printed("train", "--help", capsys=capsys).splitlines()
    texts = (line.strip("╭─╮ ") for line in lines)  # tyro draws boxes if the output can encode them
    titles = [text for text in texts if text == "options" or text in {f"{name} options" for name in GROUPS}]
    assert titles == ["options", *(f"{name} options" for name in GROUPS)]
    assert list(GROUPS) == ["data", "model", "distillation", "optimisation", "schedule", "run"]


def test_every_field_of_the_config_is_an_option_with_help(capsys):
    text = unwrapped(printed("train", "--help", capsys=capsys))
    docs = field_docs(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        assert f"--{field.name.replace('_', '-')}" in text
        assert docs[field.name] in text
        assert docs[field.name].endswith(".") and ". " not in docs[field.name], f"{field.name}: one sentence"
        assert field.default is not None or field.metadata["unset"] in text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "Peak learning rate. (default: 0.1 for sgd, 0.001 for adam, 0.256 for rmsprop)"),
        (["--recipe", "published/cifar10/resnet20"], "Peak learning rate. (default: 0.01)"),
        ([], "--teacher PATH"),
        ([], "Augment the training images. (default: on)"),
        ([], "(default: 0.5 0.75)"),
    ],
)
def test_help_shows_the_defaults(arguments, text, capsys):
    assert text in unwrapped(printed("train", *arguments, "--help", capsys=capsys))


@pytest.mark.parametrize("command", PARSERS)
def test_version(command, capsys):
    assert printed(command, "--version", capsys=capsys) == f"oekd_fast {__version__}\n"


@pytest.mark.parametrize("argument", ["--help", "--version"])
@pytest.mark.parametrize("command", PARSERS)
def test_help_and_version_do_not_import_torch(command, argument):
    code = f"""
    import sys
    from oekd_fast.{command} import main
    sys.argv = ["{command}", "{argument}"]
    try:
        main()
    except SystemExit as done:
        print("torch" in sys.modules, done.code)
    """
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=environment
    )
    lines = done.stdout.splitlines()
    assert lines[-1] == "False 0", done.stderr
    assert max(map(len, lines)) <= 80


def test_a_misspelt_option_is_corrected(capsys):
    with pytest.raises(SystemExit) as exit_:
        PARSERS["train"](["--epohcs", "3"])
    message = capsys.readouterr().err
    assert exit_.value.code == 2
    assert "--epohcs" in message and "Perhaps you meant:" in message and "--epochs INT" in message


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("train", ["--temperature", "-1"], "temperature: expected a finite number > 0, got -1.0"),
        ("train", ["--precision", "fp8"], "precision: expected one of auto, fp32, bf16, fp16, got 'fp8'"),
        ("train", ["--schedule", "cosin"], "schedule: did you mean cosine? expected one of multistep, "),
        ("reproduce", ["--seeds", "0"], "seeds: expected an integer >= 1, got 0"),
        ("report", [], "runs: expected at least one run folder, got none"),
        ("report", ["x", "--explain", "all"], "explain: expected predicted or true, got 'all'"),
    ],
)
def test_bad_values_are_value_errors_that_name_the_option(command, arguments, message, capsys):
    with pytest.raises(ValueError) as raised:
        PARSERS[command](arguments)
    assert str(raised.value).startswith(message)
    assert capsys.readouterr() == ("", "")


def test_options_of_report():
    options = PARSERS["report"](["runs/a", "runs/b", "--images", "0", "--output", "page"])
    assert [str(path) for path in options.runs] == ["runs/a", "runs/b"]
    assert (options.images, str(options.folder)) == (0, "page")


def test_options_of_reproduce():
    options = PARSERS["reproduce"](["--recipe", "evidence/digits/resnet20", "--ablations", "alpha", "temperature"])
    assert (options.seeds, options.ablations, options.config.epochs) == (5, ("alpha", "temperature"), 26)


def test_a_recipe_with_another_objective_takes_its_schedule_from_the_options():
    recipe = ["--recipe", "paper/cifar100/resnet32", "--objective", "snapshot"]
    config = PARSERS["train"]([*recipe, "--schedule", "cyclic", "--epochs", "10"]).config
    assert (config.objective, config.schedule, config.epochs, config.temperature) == ("snapshot", "cyclic", 10, None)
    with pytest.raises(ValueError, match="snapshots: expected schedule='cyclic'"):
        PARSERS["train"](recipe)
