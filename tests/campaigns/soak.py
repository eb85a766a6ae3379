"""Train and evaluate for hours in one process, and decide whether its memory, files and threads stay flat.

    python -m tests.campaigns.soak [--hours 2] [--output FILE]

One round is an epoch of steps of a family on the digits, students side by side, and what a run does beside it:
evaluation, a checkpoint and a resume from it in a second engine, and students that are saved and loaded. Some rounds
add a whole small run. The result is written anew every minute. SIGTERM and SIGINT end the campaign early; its
result then covers the hours that it ran.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from oekd_fast.common.files import write_atomically
from oekd_fast.common.machine import machine
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.family.ensemble import build_ensemble
from oekd_fast.family.saved import Normalisation, StudentMetadata, load_student, save_student
from oekd_fast.runs.checkpoint import load_latest_checkpoint, save_checkpoint
from oekd_fast.runs.device_data import DeviceData, dataset_of
from oekd_fast.runs.run import train
from oekd_fast.training.distillation import family_options
from oekd_fast.training.engine import Engine
from oekd_fast.training.prepare import prepare_family

RESULT = Path(__file__).with_name("results") / "soak.json"
CPU = torch.device("cpu")
ROUNDS_PER_RUN = 25  # a whole run takes longer than a round
WARM_UP = 0.25  # share of the samples that is left out: caches fill, and the allocator reaches its working size
# Largest slopes that count as flat, per hour. A process of constant size has a noise of a few MB, because the C library
# keeps freed memory; one lost map of a student, 4 kB a step, is more than 20 MB an hour at two steps a second.
LIMITS = {"rss_mb": 10.0, "open_files": 0.5, "threads": 0.5, "live_tensors": 10.0, "live_tensors_mb": 1.0}


@dataclass(frozen=True)
class Sample:
    """What the process holds between two rounds, after a collection of garbage.

    hours: time since the start. steps: optimisation steps so far. rss_mb: resident memory, in MB (10^6 bytes).
    live_tensors, live_tensors_mb: tensors that Python knows, and the memory of their distinct storages.
    """

    hours: float
    steps: int
    rounds: int
    rss_mb: float
    open_files: int
    threads: int
    live_tensors: int
    live_tensors_mb: float


def take_sample(hours: float, steps: int, rounds: int) -> Sample:
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.device.type == "cpu"}
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Sample(
        hours=round(hours, 4),
        steps=steps,
        rounds=rounds,
        rss_mb=pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
        open_files=len(os.listdir("/proc/self/fd")),
        threads=len(os.listdir("/proc/self/task")),
        live_tensors=len(tensors),
        live_tensors_mb=sum(storages.values()) / 1e6,
    )


def slope(hours: list[float], values: list[float]) -> float:
    """Return the median slope over all pairs of samples, which single outliers do not change (Theil and Sen)."""
    pairs = combinations(zip(hours, values, strict=True), 2)
    return statistics.median((b - a) / (later - earlier) for (earlier, a), (later, b) in pairs if later > earlier)


def judge(samples: list[Sample]) -> dict[str, Any]:
    """Return the slope of each quantity after the warm-up, its limit, and whether it is flat.

    Fewer than four samples are too few to judge; "flat" is then None.
    """
    judged = samples[int(len(samples) * WARM_UP) :]
    if len(samples) < 4:
        return {"flat": None, "samples_judged": 0, "slopes_per_hour": {}, "limits_per_hour": LIMITS}
    hours = [sample.hours for sample in judged]
    slopes = {name: slope(hours, [getattr(sample, name) for sample in judged]) for name in LIMITS}
    return {
        "flat": all(slopes[name] <= limit for name, limit in LIMITS.items()),
        "samples_judged": len(judged),
        "slopes_per_hour": {name: round(value, 3) for name, value in slopes.items()},
        "limits_per_hour": LIMITS,
    }


class Rounds:
    """A family that trains on and on, and the other parts of a run. Files go to `folder`."""

    def __init__(self, folder: Path, train_images: int | None = None) -> None:
        self.steps = self.rounds = 0
        self._folder = folder
        self._config = TrainConfig(
            dataset="digits", model="resnet20", num_students=3, batch_size=64, epochs=1000, warmup_epochs=0.0,
            train_images=train_images, executor="parallel", device="cpu", clip_norm=1.0, ema_decay=0.9, progress=False,
            latency="off",
        )  # fmt: skip
        self._dataset = dataset_of(self._config)
        self._data = DeviceData.of(self._dataset, self._config, CPU)
        self._order = torch.Generator().manual_seed(0)
        self._engine = self._new_engine()

    def round(self, stopped: Callable[[], bool]) -> None:
        """Do one round, or the part of it before `stopped` returns True."""
        metrics = self._train(self._engine, stopped)
        if stopped():
            return
        self._engine.evaluator.evaluate(self._data.validation)
        self._resume()
        self._save_and_load_students()
        if self.rounds % ROUNDS_PER_RUN == 0 and not stopped():
            self._whole_run()
        if metrics.first_bad_step is not None:
            raise AssertionError(f"the loss is not finite in round {self.rounds}")
        self.rounds += 1

    def _new_engine(self) -> Engine:
        config, data = self._config, self._data
        family = build_ensemble(config.model, config.num_students, data.num_classes, data.in_channels)
        return Engine(
            config, prepare_family(family.to(memory_format=torch.channels_last), config), family_options(config),
            device=CPU, normalisation=data.normalisation, augmentation=data.augmentation,
            steps_per_epoch=self._batches(),
        )  # fmt: skip

    def _batches(self) -> int:
        return self._data.train.num_batches(self._batch_size(), drop_last=True)

    def _batch_size(self) -> int:
        return min(self._config.batch_size, len(self._data.train))

    def _train(self, engine: Engine, stopped: Callable[[], bool], steps: int | None = None) -> Any:
        engine.metrics.reset()
        engine.begin_epoch(self._data.train, self._data.train.order(self._order), self._batch_size())
        for _ in range(self._batches() if steps is None else steps):
            if stopped():
                break
            engine.step()
            self.steps += 1
        return engine.metrics.read()

    def _resume(self) -> None:
        """Save a checkpoint, and train and evaluate a new engine that continues from it."""
        save_checkpoint(self._folder / "checkpoints", {"engine": self._engine.state_dict()}, self.steps)
        engine = self._new_engine()
        engine.load_state_dict(load_latest_checkpoint(self._folder / "checkpoints").state["engine"])
        self._train(engine, lambda: False, steps=1)
        engine.evaluator.evaluate(self._data.validation)

    def _save_and_load_students(self) -> None:
        dataset, family = self._dataset, self._engine.evaluator.ensemble
        images = torch.zeros(2, dataset.in_channels, dataset.image_size, dataset.image_size, dtype=torch.uint8)
        for j in family.members:
            metadata = StudentMetadata.of(
                family, j, image_size=dataset.image_size, classes=dataset.classes,
                normalisation=Normalisation(*self._data.normalisation),
            )  # fmt: skip
            student = load_student(save_student(family.student(j), self._folder / f"student_{j + 1}", metadata))
            with torch.no_grad():
                student(student.preprocess(images))

    def _whole_run(self) -> None:
        config = replace(
            self._config, epochs=1, train_images=128, ema_decay=None, output_dir=self._folder / f"run-{self.rounds}"
        )
        with open(os.devnull, "w") as nowhere:
            train(config, Console(file=nowhere))


@dataclass(frozen=True)
class Result:
    """Content of the result file."""

    started: str
    seconds_between_samples: float
    hours_wanted: float
    hours_run: float
    complete: bool
    steps: int
    rounds: int
    machine: dict[str, Any]
    verdict: dict[str, Any]
    samples: list[Sample]


def soak(
    hours: float, report: Callable[[Result], None], stopped: Callable[[], bool], every: float = 60.0,
    train_images: int | None = None,
) -> Result:  # fmt: skip
    """Do rounds for `hours`, at least one, until `stopped` returns True, and return the result.

    Args:
        report: receives the result so far after each sample.
        every: least seconds between two samples.
        train_images: images per epoch. Default: all of the data set.
    """
    started, start, described = datetime.now(timezone.utc), time.monotonic(), machine()
    samples: list[Sample] = []

    def passed() -> float:
        return (time.monotonic() - start) / 3600

    def result() -> Result:
        return Result(
            started=started.isoformat(timespec="seconds"),
            seconds_between_samples=every,
            hours_wanted=hours,
            hours_run=round(passed(), 4),
            complete=passed() >= hours,
            steps=rounds.steps,
            rounds=rounds.rounds,
            machine=described,
            verdict=judge(samples),
            samples=samples,
        )

    with tempfile.TemporaryDirectory() as folder:
        rounds = Rounds(Path(folder), train_images)
        while not stopped():
            rounds.round(stopped)
            if not samples or passed() - samples[-1].hours >= every / 3600:
                samples.append(take_sample(passed(), rounds.steps, rounds.rounds))
                report(result())
            if passed() >= hours:
                break
    return result()


def write(result: Result, path: Path) -> None:
    write_atomically(path, (json.dumps(asdict(result), indent=1) + "\n").encode())


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=2.0, help="hours to run (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULT, help="file of the result (default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the campaign. Return 0 if everything is flat, 1 if not or if there are too few samples to judge."""
    options, signals = parse(arguments), []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: signals.append(number))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    if torch.get_num_threads() < 2:
        torch.set_num_threads(2)  # with one thread, students would not run side by side
    result = soak(options.hours, lambda so_far: write(so_far, options.output), lambda: bool(signals))
    write(result, options.output)
    print(f"{result.hours_run:.2f} hours, {result.steps} steps, verdict: {json.dumps(result.verdict)}")
    return 0 if result.verdict["flat"] else 1


if __name__ == "__main__":
    sys.exit(main())
