"""A finished run of four students with chosen accuracies, sizes and latencies."""

import json
from pathlib import Path

import pytest

from oekd_fast.config.train_config import TrainConfig

from ..support.latencies import EAGER_1, EAGER_64, ONNX_1, SINGLE_1, entry, with_latencies
from ..support.summaries import summary_of

VALIDATION, TEST = [98.5, 97.25, 97.25, 94.0], [97.0, 98.0, 96.5, 95.0]
MEDIANS = [4.0, 3.0, 3.5, 1.0]
PARAMETERS = [1000, 500, 333, 250]


def rows(j: int) -> list[dict]:
    larger = (2,) if j == 2 else ()
    median = MEDIANS[j]
    return [entry(EAGER_1, median, *larger), entry(SINGLE_1, 2 * median), entry(ONNX_1, median / 2),
            entry(EAGER_64, 32 * median)]  # fmt: skip


def write_run(folder: Path, summary: dict) -> Path:
    """Write a run of two epochs, whose second one was selected."""
    config = TrainConfig(num_students=4, epochs=2, output_dir=folder)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.as_dict()))
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = [
        {
            "phase": "ensemble", "epoch": epoch, "train": {"ce": [1.0] * 4, "kd": [1.0] * 4},
            "validation": {"accuracy": accuracy, "ensemble_accuracy": 99.0},
        }
        for epoch, accuracy in ((1, [50.0] * 4), (2, VALIDATION))
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def plain_summary() -> dict:
    """The summary of an older version, without sizes and latencies."""
    summary = summary_of(TEST, [90.0] * 4, ensemble=98.5, epochs=2)
    for student in summary["students"]:
        student |= {"flops": 10 * student["parameters"], "relative_gain": 1.0}
    return summary | {
        "dataset": "digits", "model": "resnet20", "selected_epoch": 2, "seconds": 1.0, "versions": {"torch": "2"},
    }  # fmt: skip


@pytest.fixture
def summary(plain_summary) -> dict:
    ensemble = [entry(EAGER_1, 9.0), entry(SINGLE_1, 18.0), entry(EAGER_64, 300.0)]
    return with_latencies(plain_summary, [rows(j) for j in range(4)], ensemble)


@pytest.fixture
def run(tmp_path, summary) -> Path:
    return write_run(tmp_path / "run", summary)


@pytest.fixture
def old_run(tmp_path, plain_summary) -> Path:
    return write_run(tmp_path / "old", plain_summary)
