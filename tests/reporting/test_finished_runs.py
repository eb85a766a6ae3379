"""Runs of one training are grouped whatever they call their data set."""

import shutil
from pathlib import Path

from oekd_fast.reporting.finished_runs import group_runs, read_run

from ..support.reports import change

STORED = Path(__file__).parents[1] / "fixtures" / "runs_of_0_1_0" / "finished"


def test_other_names_of_the_same_data_do_not_split_a_group(tmp_path):
    data = tmp_path / "data"
    names = [str(data), f"{data}/", f"{tmp_path}/x/../data", "cifar10", "uoft-cs/cifar10", f"{data}2", str(data)]
    runs = []
    for number, name in enumerate(names):
        folder = shutil.copytree(STORED, tmp_path / str(number))
        change(folder / "config.json", dataset=name, seed=number, temperature=3.0 if number == 6 else 2.0)
        runs.append(read_run(folder))
    groups = group_runs(runs)
    assert [[run.config.seed for run in group.runs] for group in groups] == [[0, 1, 2], [3, 4], [5], [6]]
    assert [group.differences for group in groups] == [
        (),
        (f"dataset cifar10 (not {data})",),
        (f"dataset {data}2 (not {data})",),
        ("temperature 3.0 (not 2.0)",),
    ]
