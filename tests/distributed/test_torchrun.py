"""The command line under torchrun: kills and restarts, signals, bad input."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from ..support.launcher import Launched, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the ranks of a launcher in /proc"),
]
EPOCHS = 16


def command(arrays, folder, *more) -> list[str]:
    options = ["--num-students", "2", "--epochs", str(EPOCHS), "--batch-size", "20", "--validation-fraction", "0.2"]
    options += [
        "--warmup-epochs",
        "0.5",
        "--learning-rate",
        "0.05",
        "--deterministic",
        "--device",
        "cpu",
        "--latency",
        "off",
    ]
    return ["oekd_fast.train", "--dataset", str(arrays), *options, "--output-dir", str(folder), *more]


def epochs_done(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def students(folder: Path) -> dict[str, bytes]:
    found = {file.name: file.read_bytes() for file in (folder / "students").glob("*.safetensors")}
    assert len(found) == 2
    return found


@pytest.fixture(scope="module")
def uninterrupted(arrays, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    launched = Launched(command(arrays, folder))
    assert launched.wait() == 0, launched.output
    # Rank 0 alone shows progress and the table.
    assert launched.output.count(f"Run folder: {folder}") == 1
    assert launched.output.count("test images, epoch") == 1
    return folder


def test_killed_ranks_are_restarted_to_the_same_bits(arrays, uninterrupted, tmp_path):
    """Five kills in a row, of either rank."""
    folder = tmp_path / "run"
    launched = Launched(command(arrays, folder), restarts=5)
    for kill in range(5):
        wait_until(lambda kill=kill: epochs_done(folder) > 2 * kill and len(launched.ranks()) == 2, launched)
        os.kill(launched.ranks()[kill % 2], signal.SIGKILL)
        time.sleep(0.1)
    assert launched.wait() == 0, launched.output
    assert epochs_done(folder) == EPOCHS
    assert students(folder) == students(uninterrupted)
    assert "Traceback" not in launched.output


def test_a_signal_to_the_launcher_stops_all_ranks_and_the_run_resumes_to_the_same_bits(arrays, uninterrupted, tmp_path):
    folder = tmp_path / "run"
    launched = Launched(command(arrays, folder))
    wait_until(lambda: epochs_done(folder) >= 2, launched)
    for pid in launched.ranks().values():  # a scheduler may signal the ranks too
        os.kill(pid, signal.SIGTERM)
    launched.signal(signal.SIGTERM)
    assert launched.wait() != 0
    assert launched.output.count("and saved") == 1, launched.output
    assert not launched.left()
    assert epochs_done(folder) < EPOCHS

    resumed = Launched(command(arrays, folder, "--resume"))
    assert resumed.wait() == 0, resumed.output
    assert students(folder) == students(uninterrupted)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            ("--batch-size", "3"),
            "error: rank 0: batch_size: training needs batches of at least 4 images on 2 ranks, got 3",
        ),
        (("--dataset", "missing"), "error: rank 0: dataset: "),
    ],
    ids=["small batch", "no data"],
)
def test_bad_input_is_one_line_and_ends_all_ranks(arrays, tmp_path, option, message):
    start = time.monotonic()
    launched = Launched(command(arrays, tmp_path / "run", *option))
    assert launched.wait() == 1
    assert time.monotonic() - start < 120  # a rank that waits for another one would wait for 600 s
    assert launched.output.count("error: ") == launched.output.count(message) == 1, launched.output
    assert not launched.left()
