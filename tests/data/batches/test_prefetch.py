"""The prefetch thread: errors, the end of epochs, and interruption. test_base.py tests the contents of batches."""

import gc
import signal
import subprocess
import sys
import threading
import time
import traceback

import pytest
import torch

from oekd_fast.data import DataError, HostBatches, LazySplit
from oekd_fast.data.batches.prefetch import NUM_SLOTS, _Prefetch

COUNT = 24


class Source:
    """Images filled with their row number. Reading waits for `gate`; row `bad` raises."""

    image_shape = (1, 2, 2)

    def __init__(self, bad: int | None = None) -> None:
        self.bad = bad
        self.gate = threading.Event()
        self.gate.set()
        self.reads = 0

    def read(self, rows, out):
        self.gate.wait()
        self.reads += 1
        if self.bad in rows:
            raise DataError(f"cannot read image in row {self.bad}")
        out[...] = rows[:, None, None, None]


def prefetched(source: Source) -> HostBatches:
    return HostBatches(LazySplit.of(source, torch.arange(COUNT)), "cpu")


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "oekd_fast prefetch"]


def wait_until(condition) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("the condition is still false after a minute")


def take_all(batches: HostBatches, count: int) -> list[int]:
    labels = []
    for _ in range(count):
        batches.ready()
        labels += batches.take()[1].tolist()
    return labels


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert threads() == []


def test_the_thread_gathers_ahead_as_many_batches_as_it_has_buffers():
    source = Source()
    batches = prefetched(source)
    batches.begin(torch.arange(COUNT), 2)
    wait_until(lambda: source.reads == NUM_SLOTS)
    time.sleep(0.05)
    assert source.reads == NUM_SLOTS
    assert take_all(batches, 12) == list(range(COUNT))
    assert source.reads == 12


def test_the_thread_ends_with_its_epoch():
    batches = prefetched(Source())
    for _ in range(3):
        batches.begin(torch.arange(COUNT), 2)
        assert len(threads()) == 1
        assert take_all(batches, 12) == list(range(COUNT))
        assert threads() == []


def test_an_error_in_the_thread_is_raised_with_its_traceback():
    batches = prefetched(Source(bad=9))
    batches.begin(torch.arange(COUNT), 4)
    assert take_all(batches, 2) == list(range(8))
    with pytest.raises(DataError, match="cannot read image in row 9") as caught:
        batches.ready()
    assert "read" in [frame.name for frame in traceback.extract_tb(caught.tb)]
    assert threads() == []
    with pytest.raises(RuntimeError, match="no batch left"):  # and does not block
        batches.ready()
    batches.begin(torch.arange(8), 4)
    assert take_all(batches, 2) == list(range(8))


def test_close_ends_the_epoch():
    batches = prefetched(Source())
    batches.close()
    batches.begin(torch.arange(COUNT), 2)
    batches.ready()
    batches.close()
    assert threads() == []
    with pytest.raises(RuntimeError, match="no batch left"):
        batches.ready()


def test_a_new_epoch_drops_batches_gathered_ahead():
    source = Source()
    batches = prefetched(source)
    batches.begin(torch.arange(COUNT), 2)
    wait_until(lambda: source.reads == NUM_SLOTS)
    batches.begin(torch.arange(COUNT).flip(0), 2, 3)
    assert len(threads()) == 1
    assert take_all(batches, 9) == list(range(17, -1, -1))


def test_deleting_the_batches_ends_the_thread():
    batches = prefetched(Source())
    batches.begin(torch.arange(COUNT), 2)
    batches.ready()
    (thread,) = threads()
    del batches
    gc.collect()
    assert not thread.is_alive()


def test_past_epochs_are_not_kept_in_memory():
    batches = prefetched(Source())
    for _ in range(5):
        batches.begin(torch.arange(COUNT), 4)
        take_all(batches, 6)
    gc.collect()
    assert sum(type(thing) is _Prefetch for thing in gc.get_objects()) == 1


INTERRUPTED_EPOCH = """
import threading, time
import torch
from oekd_fast.data import HostBatches, LazySplit

class SlowSource:
    image_shape = (1, 2, 2)
    def read(self, rows, out):
        if rows[0]:
            time.sleep(1)

batches = HostBatches(LazySplit.of(SlowSource(), torch.arange(2000)), "cpu")
batches.begin(torch.arange(2000), 2)
batches.ready()
try:
    print("waiting", flush=True)
    while True:
        batches.ready()
except KeyboardInterrupt:
    print("stopped with", threading.active_count(), "threads")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send to a process")
def test_interrupt_while_waiting_and_interpreter_exit_inside_an_epoch():
    command = [sys.executable, "-c", INTERRUPTED_EPOCH]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (0, "stopped with 2 threads\n", "")
