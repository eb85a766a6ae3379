"""Fixtures of the tests of runs: small arrays that a network can learn, and a config that trains on them."""

from dataclasses import replace
from pathlib import Path

import pytest

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.runs.run import train

from ..support.forked_runs import MODEL, smallest_runs
from ..support.small_runs import QUIET, write_colours


@pytest.fixture(scope="module")
def arrays(tmp_path_factory) -> Path:
    return write_colours(tmp_path_factory.mktemp("arrays"), train=90, test=30)


@pytest.fixture(autouse=True)
def without_picture(request, monkeypatch) -> None:
    """Draw no report.png, which takes a fifth of a small run, except in tests that request `picture`."""
    if "picture" not in request.fixturenames:
        monkeypatch.setattr("oekd_fast.runs.run.write_png", lambda path, draw: None)


@pytest.fixture
def picture() -> None:
    """Have runs draw their report.png."""


@pytest.fixture
def config(arrays, tmp_path) -> TrainConfig:
    return small_config(arrays, tmp_path / "run")


@pytest.fixture
def smallest(config) -> TrainConfig:
    """A config of one epoch of the smallest network, for tests of what surrounds the training."""
    with smallest_runs():
        yield replace(config, model=MODEL, epochs=1, executor="sequential")


@pytest.fixture(scope="module")
def uninterrupted(arrays, tmp_path_factory) -> Path:
    """Return the folder of a run of `config`, with which a test may compare but which it must not change."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(small_config(arrays, folder), QUIET)
    return folder


@pytest.fixture(scope="module")
def uninterrupted_with_baselines(arrays, tmp_path_factory) -> Path:
    """Return the folder of a run of `smallest` in three epochs with baselines, which a test must not change."""
    folder = tmp_path_factory.mktemp("uninterrupted_with_baselines") / "run"
    with smallest_runs():
        train(replace(small_config(arrays, folder), model=MODEL, executor="sequential", baseline=True), QUIET)
    return folder


def small_config(arrays: Path, output_dir: Path) -> TrainConfig:
    return TrainConfig(
        dataset=str(arrays),
        num_students=2,
        epochs=3,
        batch_size=20,
        validation_fraction=0.2,
        output_dir=output_dir,
        warmup_epochs=0.5,
        learning_rate=0.05,
        progress=False,
        latency="off",
    )
