"""Whole runs of several ranks, as functions that a rank of `support.ranks` can run."""

import os
import signal
from dataclasses import replace

from oekd_fast.latency.result import LatencyReport
from oekd_fast.runs import deployment
from oekd_fast.runs import run as runs
from oekd_fast.runs.dry_run import dry_run
from oekd_fast.runs.interrupt import Interrupted
from oekd_fast.training.engine import Engine

from .small_runs import QUIET


def train(world, config, changes=()):
    """Train `config`, with the fields `changes[rank]` on each rank; return the summary. Draws no picture."""
    own = replace(config, **changes[world.rank]) if changes else config
    draw, runs.write_png = runs.write_png, lambda path, draw: None
    try:
        return runs.train(own, QUIET)
    finally:
        runs.write_png = draw


def stop(world, config, step, ranks):
    """Train until the `ranks` receive SIGTERM before training step `step`; return the signal and the message."""
    original, done = Engine.step, [0]

    def patched(self):
        done[0] += 1
        if done[0] == step and world.rank in ranks:
            for _ in range(min(world.size, 2)):  # a launcher passes on what the process has received already
                os.kill(os.getpid(), signal.SIGTERM)
        return original(self)

    Engine.step = patched
    try:
        train(world, config)
    except Interrupted as stopped:
        return stopped.signal_number, str(stopped).partition(" and saved")[0], done[0]
    finally:
        Engine.step = original
    return None


def fail(world, config, rank, where):
    """Train while the method or function `where`, such as "DeviceData.of", raises on one rank."""
    name, _, attribute = where.partition(".")
    owner = getattr(runs, name)
    original = vars(owner)[attribute]

    def broken(*args, **kwargs):
        raise OSError(28, "No space left on device", "somewhere")

    if world.rank == rank:
        setattr(owner, attribute, staticmethod(broken))
    try:
        return train(world, config)
    finally:
        setattr(owner, attribute, original)


def measure(world, config):
    """Train while the measurement of latency is replaced; return the summary, and the seconds of each measurement."""
    measured = []

    def replacement(students, *_, seconds, **__):
        measured.append(seconds)
        return LatencyReport(((),) * len(students), (), {"rank": world.rank}, (3, 8, 8), 1.0)

    original, deployment.measure_students = deployment.measure_students, replacement
    try:
        return train(world, config), measured
    finally:
        deployment.measure_students = original


def plan(world, config):
    """Return the plan of `config`, from as few steps as possible."""
    return dry_run(config, seconds=0.0)
