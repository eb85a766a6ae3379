"""The command line under torchrun: kills and restarts, signals, bad input."""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ..runs.conftest import small_config
from ..support.launcher import Launched, wait_until
from ..support.small_runs import command_line

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the ranks of a launcher in /proc"),
]
KILLS = (1, 0)  # ranks
EPOCHS = 2 * len(KILLS) + 2


def command(arrays, folder, *more) -> list[str]:
    config = replace(small_config(arrays, folder), epochs=EPOCHS, deterministic=True, device="cpu")
    return ["oekd_fast.train", *command_line(config), *more]


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
    """Several kills in a row, of either rank, as many as the launcher has restarts."""
    folder = tmp_path / "run"
    launched = Launched(command(arrays, folder), restarts=len(KILLS))
    for done, rank in enumerate(KILLS):
        wait_until(lambda done=done: epochs_done(folder) > 2 * done and len(launched.ranks()) == 2, launched)
        os.kill(launched.ranks()[rank], signal.SIGKILL)
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


def test_bad_input_is_one_line_and_ends_all_ranks(arrays, tmp_path):
    message = "error: rank 0: batch_size: training needs batches of at least 4 images on 2 ranks, got 3"
    start = time.monotonic()
    launched = Launched(command(arrays, tmp_path / "run", "--batch-size", "3"))
    assert launched.wait() == 1
    assert time.monotonic() - start < 120  # a rank that waits for another one would wait for 600 s
    assert launched.output.count("error: ") == launched.output.count(message) == 1, launched.output
    assert not launched.left()
