"""A finished run of two students, and its result."""

from dataclasses import replace
from pathlib import Path

import pytest

from oekd_fast import TrainConfig, TrainResult, train

from ..support.forked_runs import MODEL, smallest_runs
from ..support.small_runs import QUIET, write_colours


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("results")
    data = write_colours(folder / "colours<b>", train=60, test=30)
    with smallest_runs():
        yield TrainConfig(
            dataset=str(data), model=MODEL, num_students=2, epochs=2, batch_size=20, learning_rate=0.05,
            output_dir=folder / "run", progress=False, latency="off", baseline=True, executor="sequential",
        )  # fmt: skip


@pytest.fixture(scope="module")
def result(config) -> TrainResult:
    """The result of a run, which a test must not change."""
    return train(config, QUIET)


@pytest.fixture(scope="module")
def run_of_a_function(config, tmp_path_factory) -> Path:
    """The folder of a run whose network is made by a function, in a file that notes each call."""
    folder = tmp_path_factory.mktemp("own")
    file = folder / "nets.py"
    file.write_text(
        "from pathlib import Path\n"
        "from torch import nn\n\n"
        "def make(num_classes):\n"
        "    Path(__file__).with_name('calls').touch()\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),\n"
        "                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))\n"
    )
    train(replace(config, model=f"{file}:make", epochs=1, baseline=False, output_dir=folder / "run"), QUIET)
    (folder / "calls").unlink()
    return folder / "run"
