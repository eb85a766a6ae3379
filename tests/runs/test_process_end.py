"""Commands that end early: signals, closed pipes, closed terminals. They run in forks, which have torch imported."""

import os
import signal
import sys
import time
from dataclasses import replace

import pytest
import tyro  # noqa: F401 - imported by the command, which would do so in every fork

from oekd_fast.runs.checkpoint import load_latest_checkpoint
from oekd_fast.train import main

from ..support.forked_runs import fork, smallest_config, wait
from ..support.forks import FORKS
from ..support.small_runs import command_line

pytestmark = [*FORKS, pytest.mark.usefixtures("smallest_model")]


class Command:
    """The command `oekd_fast.train` in a fork.

    Args:
        config: the run.
        ends: descriptors of the other end and of its standard output, which the process keeps alone.
        ignored: signals that it ignores.
    """

    def __init__(self, config, tmp_path, ends, ignored=()):
        self.folder = config.run_folder
        self._errors, self._traceback = tmp_path / "errors", tmp_path / "traceback"

        def run():
            os.close(ends[0])
            os.dup2(ends[1], 1)
            os.dup2(os.open(self._errors, os.O_WRONLY | os.O_CREAT), 2)
            sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))
            for number in ignored:
                signal.signal(number, signal.SIG_IGN)
            sys.argv[1:] = command_line(config)
            status = main()
            sys.stdout.flush()
            os._exit(status)

        self._pid = fork(run, self._traceback)
        os.close(ends[1])

    def wait_for_an_epoch(self):
        metrics = self.folder / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size):
            assert os.waitpid(self._pid, os.WNOHANG) == (0, 0), self.errors()
            time.sleep(0.01)

    def send(self, number):
        os.kill(self._pid, number)

    def wait(self):
        return wait(self._pid)

    def errors(self):
        assert not self._traceback.exists(), self._traceback.read_text()
        return self._errors.read_text()


@pytest.fixture
def config(tmp_path):
    return replace(smallest_config(tmp_path / "data"), output_dir=tmp_path / "run", baseline=False, epochs=1000)


def saved(config):
    return load_latest_checkpoint(config.run_folder / "checkpoints" / "ensemble")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_saves_a_checkpoint(config, tmp_path, number):
    reading, writing = os.pipe()
    command = Command(config, tmp_path, (reading, writing))
    command.wait_for_an_epoch()
    command.send(number)
    assert command.wait() == 128 + number and command.errors() == ""
    with os.fdopen(reading) as output:
        assert f"saved {saved(config).path}; --resume continues" in output.read()
    assert not (config.run_folder / "run.lock").exists()


def test_a_closed_terminal_saves_a_checkpoint(config, tmp_path):
    reading, writing = os.openpty()
    command = Command(replace(config, progress=True), tmp_path, (reading, writing))
    command.wait_for_an_epoch()
    os.close(reading)
    command.send(signal.SIGHUP)
    assert command.wait() in (128 + signal.SIGHUP, 141)  # the failed write to the terminal may be noticed first
    assert "Traceback" not in command.errors() and saved(config) is not None


def test_a_hang_up_that_is_ignored_does_not_stop_the_run(config, tmp_path):
    reading, writing = os.pipe()
    command = Command(replace(config, epochs=4), tmp_path, (reading, writing), ignored=[signal.SIGHUP])
    command.wait_for_an_epoch()
    command.send(signal.SIGHUP)
    assert command.wait() == 0 and command.errors() == ""
    os.close(reading)


@pytest.mark.slow
def test_a_closed_pipe_saves_a_checkpoint_and_says_so_in_one_line(config, tmp_path):
    reading, writing = os.pipe()
    command = Command(replace(config, epochs=80, progress=True), tmp_path, (reading, writing))
    assert os.read(reading, 1)
    os.close(reading)
    assert command.wait() == 141
    path = saved(config).path
    assert command.errors() == (
        f"ensemble: the output cannot be written (Broken pipe), stopped after step {saved(config).step} and saved "
        f"{path}; --resume continues\n"
    )


def test_a_run_that_is_complete_ends_with_status_0_whatever_happens_to_its_output(config, tmp_path):
    reading, writing = os.pipe()
    command = Command(replace(config, epochs=3), tmp_path, (reading, writing))
    os.close(reading)
    assert command.wait() == 0
    assert command.errors() == (
        f"the output cannot be written (Broken pipe), the run is complete: {config.run_folder}\n"
    )
    assert (config.run_folder / "summary.json").exists()
