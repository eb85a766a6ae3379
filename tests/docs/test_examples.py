"""Code blocks of the pages run, and their command lines are understood by the commands."""

import importlib
import importlib.util
import re
import shlex
from dataclasses import fields

import pytest
import torch

from oekd_fast import build_ensemble
from oekd_fast.config.command_line import GROUPS, parse_recipe_options
from oekd_fast.config.options import parse
from oekd_fast.family.saved import Normalisation, StudentMetadata, save_student
from oekd_fast.models import get_architecture, registry

from ..models.published_nets import published
from .pages import PAGES, ROOT, code_blocks, commands, name

WITH_CODE = [page for page in PAGES if code_blocks(page.read_text(), "python")]
WITH_COMMANDS = [page for page in PAGES if commands(page.read_text())]


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """Work in an empty folder that holds what the pages assume: a student of a run, and images for it.

    Runs of the pages measure no latency, which takes longer than their training.
    """
    monkeypatch.setattr("oekd_fast.runs.run.with_latency", lambda summary, *_, **__: summary)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_ARCHITECTURES", dict(registry._ARCHITECTURES))
    students = tmp_path / "runs" / "x" / "students"
    students.mkdir(parents=True)
    ensemble = build_ensemble("resnet20", num_students=5, num_classes=10, in_channels=1)
    metadata = StudentMetadata(
        model="resnet20",
        num_students=5,
        index=3,
        in_channels=1,
        image_size=8,
        num_classes=10,
        classes=tuple("0123456789"),
        widths=get_architecture("resnet20").map_channels(2, 5),
        parameters=ensemble.parameter_counts()[2],
        accuracy=None,
        normalisation=Normalisation((0.5,), (0.25,)),
    )
    save_student(ensemble.student(2), students / "student_3", metadata)
    return {"images": torch.zeros(2, 1, 8, 8, dtype=torch.uint8)}


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_python_blocks_run(page, inputs, monkeypatch):
    text = page.read_text()
    if "resnet18.pth" in text:
        _, net = published("resnet18", num_classes=1000)
        torch.save(net.state_dict(), "resnet18.pth")
    if "init_process_group" in text:  # as torchrun starts a single process
        for variable, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}.items():
            monkeypatch.setenv(variable, str(value))
    for number, block in enumerate(code_blocks(text, "python")):
        exec(compile(block, f"{name(page)}, block {number}", "exec"), inputs)


def test_the_drop_in_example_trains_all_heads(inputs):
    block = code_blocks((ROOT / "README.md").read_text(), "python")[0]
    exec(block, inputs)
    assert inputs["loss"].item() > 0
    assert all(head.weight.grad.abs().sum() > 0 for head in inputs["heads"])


def test_the_own_network_on_its_page_is_the_example():
    page = (ROOT / "docs/own_network.md").read_text()
    assert code_blocks(page, "python")[0] == (ROOT / "examples/own_network.py").read_text()


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name)
def test_command_lines_are_understood(page):
    for line in commands(page.read_text()):
        _, _, module, *arguments = shlex.split(line)
        if module == "oekd_fast.report":
            parse_report(arguments)
        elif module == "oekd_fast.export":
            parse_export(arguments)
        elif module == "oekd_fast.pick":
            parse_pick(arguments)
        elif module == "oekd_fast.check_data":
            parse_check_data(arguments)
        elif module.startswith("oekd_fast."):
            parse_training(module, arguments)
        else:
            assert importlib.util.find_spec(module) is not None, line


def parse_training(module, arguments):
    module_of = importlib.import_module(module)
    options = module_of.ReproduceOptions if module == "oekd_fast.reproduce" else module_of.TrainOptions
    if "--help" in arguments:
        with pytest.raises(SystemExit) as stopped:
            parse_recipe_options(options, f"python -m {module}", arguments)
        assert stopped.value.code == 0
    else:
        assert isinstance(parse_recipe_options(options, f"python -m {module}", arguments), options)


def parse_report(arguments):
    from oekd_fast.report import ReportConfig

    assert ReportConfig(**parse(ReportConfig, "python -m oekd_fast.report", arguments)).runs


def parse_export(arguments):
    from oekd_fast.export import ExportConfig

    if "--help" in arguments:
        with pytest.raises(SystemExit):
            parse(ExportConfig, "python -m oekd_fast.export", arguments)
    else:
        assert ExportConfig(**parse(ExportConfig, "python -m oekd_fast.export", arguments)).run


def parse_pick(arguments):
    from oekd_fast.pick import PickConfig

    assert PickConfig(**parse(PickConfig, "python -m oekd_fast.pick", arguments)).run


def parse_check_data(arguments):
    from oekd_fast.check_data import CheckDataOptions

    assert CheckDataOptions(**parse(CheckDataOptions, "python -m oekd_fast.check_data", arguments)).dataset


@pytest.mark.parametrize("group", GROUPS)
def test_the_training_page_lists_the_options_of_each_group_in_order(group):
    section = (ROOT / "docs/training.md").read_text().split(f"\n### {group.capitalize()}\n")[1].split("\n#")[0]
    listed = re.findall(r"^\| `--([\w-]+)` \|", section, re.MULTILINE)
    assert listed == [field.name.replace("_", "-") for field in fields(GROUPS[group])]
