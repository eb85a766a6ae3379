"""Runs of the smallest family in forked processes, for campaigns that train hundreds of times.

A fork starts with torch imported. Only one thread computes, because threads of the parent do not exist in a fork.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from oekd_fast import FunctionalArchitecture, build_ensemble, register_architecture
from oekd_fast.common.files import write_atomically
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.models import registry
from oekd_fast.runs import run as runs

from .small_runs import write_colours

MODEL = "smallest"
# A picture takes longer than the whole training; its content is not what these campaigns look at.
PICTURE = b"picture"


def _conv(c_in: int, c_out: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, 2, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())


SMALLEST = FunctionalArchitecture(MODEL, lambda c_in: _conv(c_in, 2), lambda width: [_conv(2, width(4))], nn.Linear)


def smallest_config(folder: Path) -> TrainConfig:
    """Write arrays to `folder` and return a config of three phases, of two epochs with two steps each."""
    write_colours(folder, train=24, test=6)
    return TrainConfig(
        dataset=str(folder), model=MODEL, num_students=2, epochs=2, batch_size=8, validation_fraction=0.25,
        warmup_epochs=0.5, learning_rate=0.05, progress=False, baseline=True, executor="sequential",
        latency="off",
    )  # fmt: skip


@contextlib.contextmanager
def smallest_runs() -> Iterator[None]:
    """Prepare this process for forks that train: the model of `smallest_config`, one thread, and no pictures."""
    threads, write_png, architectures = torch.get_num_threads(), runs.write_png, registry._ARCHITECTURES
    registry._ARCHITECTURES = dict(architectures)
    torch.set_num_threads(1)
    runs.write_png = lambda path, draw: write_atomically(path, PICTURE)
    try:
        register_architecture(SMALLEST)
        build_ensemble(MODEL, num_students=2)  # imports what every fork would import at its first use
        yield
    finally:
        runs.write_png, registry._ARCHITECTURES = write_png, architectures
        torch.set_num_threads(threads)


def fork(action: Callable[[], None], errors: Path) -> int:
    """Start `action` in a forked process and return its number; a traceback of it is written to the file `errors`."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        action()
        status = 0
    except BaseException:
        errors.write_text(traceback.format_exc())
    finally:
        os._exit(status)


def wait(pid: int) -> int:
    """Return the exit status of a forked process, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
