"""Fixtures of the tests of reports: a finished run."""

import shutil
from pathlib import Path

import pytest
import torch

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.runs.run import train

from ..support.reports import draw_nothing, page_of
from ..support.small_runs import QUIET, write_colours


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A run of two students and their baselines, on a folder with a name that has to be escaped in HTML."""
    folder = tmp_path_factory.mktemp("report")
    data = write_colours(folder / "a<b>&c", train=60, test=30)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    config = TrainConfig(dataset=str(data), num_students=2, epochs=2, batch_size=20, output_dir=folder / "run",
                         learning_rate=0.05, baseline=True, progress=False, latency="off")  # fmt: skip
    train(config, QUIET)
    torch.set_num_threads(before)
    return config.run_folder


@pytest.fixture(scope="session")
def drawn_run(trained) -> Path:
    """A copy of the run, without checkpoints, with its report and all pictures; tests must not change it."""
    run = shutil.copytree(trained, trained.parent / "drawn", ignore=shutil.ignore_patterns("checkpoints"))
    page_of(run)
    return run


@pytest.fixture
def run(trained, tmp_path, one_thread, monkeypatch) -> Path:
    """A copy of the run that tests may damage, whose report draws no pictures, since drawing takes most of the time."""
    draw_nothing(monkeypatch)
    return shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
