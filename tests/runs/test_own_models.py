"""Whole runs of networks of a user, by the option --model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from oekd_fast import load_student
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.reporting.evidence import load_networks
from oekd_fast.reporting.finished_runs import read_run
from oekd_fast.reporting.run_files import ReportError
from oekd_fast.runs.run import train

from ..support import own_nets
from ..support.small_runs import CPU, QUIET, assert_same_run

NETS = Path(own_nets.__file__)


@pytest.mark.slow
@pytest.mark.parametrize("function", ["make", "by_width"])
def test_a_run_trains_saves_and_loads_a_network_of_a_file(config, tmp_path, function):
    model = f"{NETS}:{function}"
    config = replace(config, model=model, baseline=True, epochs=1, latency="off")
    console = Console(record=True, width=80, file=(tmp_path / "out").open("w"))
    summary = train(config, console)
    assert [student["parameters"] for student in summary["students"]] == sorted(
        (student["parameters"] for student in summary["students"]), reverse=True
    )
    assert "part     ends after  map  channels of students 1-2\nbase     stem        8x8  8\n" in console.export_text()

    weights = config.output_dir / "students" / "student_2"
    with pytest.raises(
        ValueError, match=r"own_nets.py:\w+' is a function of a file, which is not run unasked; pass arch"
    ):
        load_student(weights)
    student = load_student(weights, model)
    assert student.metadata.widths == (4, 8) and student(torch.zeros(2, 3, 8, 8)).shape == (2, 3)

    run = read_run(config.output_dir)
    with pytest.raises(ReportError, match=f"--model {model} runs it"):
        load_networks(run, CPU)
    networks = load_networks(run, CPU, model)
    assert len(networks.students) == len(networks.baselines) == 2

    again = replace(config, output_dir=tmp_path / "again")
    train(again, QUIET)
    assert_same_run(config.output_dir, again.output_dir)


def test_the_run_folder_is_named_after_the_model():
    for model, name in {"timm:resnet18": "timm_resnet18", "nets/my.py:make": "my.py_make"}.items():
        assert TrainConfig(model=model).run_folder.name == f"digits-{name}-seed0"


@pytest.mark.slow
def test_students_of_a_file_run_side_by_side_in_bf16(config):
    config = replace(config, model=f"{NETS}:make", epochs=1, latency="off", executor="parallel", precision="bf16")
    assert train(config, QUIET)["trained_epochs"] == 1
