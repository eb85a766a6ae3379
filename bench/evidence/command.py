"""Command line: train the arms that are not finished, seed by seed, or show what is left."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oekd_fast.common.tables import table_of_columns
from oekd_fast.common.text import print_line
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.data import DataError, load_dataset
from oekd_fast.reproduction import seeds
from oekd_fast.reproduction.status import columns, statuses, summary_line
from oekd_fast.runs.console import RunConsole
from oekd_fast.runs.host_memory import keep_freed_memory
from oekd_fast.runs.interrupt import Interrupted
from oekd_fast.runs.plan import FAMILY
from oekd_fast.runs.run_folder import RunFolder

from . import results
from .alone import phase_of, saved_alone, train_alone
from .arms import ARMS, COMMON, config_of
from .subset import is_written, write_subset
from .test_images import correct_predictions

PER_CLASS, EPOCHS = 100, 30
PARTS = (FAMILY, *(str(student + 1) for student in range(COMMON["num_students"])))
RESULTS = "results.json"


@dataclass(frozen=True)
class Planned:
    """A run of an arm: its family, or one of its students alone."""

    key: results.Key
    config: TrainConfig

    @property
    def phases(self) -> tuple[str, ...]:
        """Names of the phases of `config` that are trained."""
        return (FAMILY if self.key.student is None else phase_of(self.config, self.key.student),)


def left(runs: Sequence[Planned], out: Path) -> list[Planned]:
    """Return the runs without a result in ``results.json`` of `out`."""
    recorded = results.recorded(out / RESULTS)
    return [run for run in runs if run.key not in recorded]


def planned(
    names: Sequence[str], numbers: Sequence[int], epochs: int, out: Path, parts: Sequence[str] = PARTS
) -> list[Planned]:
    """Return the runs in the order in which they are trained: all arms of a seed, then the next seed.

    Args:
        names: arms.
        numbers: seeds.
        epochs: epochs of each run.
        out: folder of the runs.
        parts: what is trained of an arm; the students alone are trained where the arm says so.
    """
    return [
        _run(name, seed, epochs, out, None if part == FAMILY else int(part))
        for seed in numbers
        for name in names
        for part in parts
        if part == FAMILY or ARMS[name].alone
    ]


def _run(name: str, seed: int, epochs: int, out: Path, student: int | None) -> Planned:
    folder = out / f"{name}-{epochs}" / (f"seed-{seed}" if student is None else f"seed-{seed}-alone-{student}")
    teacher = saved_alone(_teacher(seed, epochs, out).config, 1) if ARMS[name].taught else None
    config = config_of(
        ARMS[name], out / "subset", epochs,
        seed=seed, output_dir=folder, resume=True, baseline=student is not None, teacher=teacher,
    )  # fmt: skip
    return Planned(results.Key(name, seed, epochs, student), config)


def _teacher(seed: int, epochs: int, out: Path) -> Planned:
    """Return the run of the teacher of the arms that are taught."""
    return _run("independent", seed, epochs, out, 1)


def train(runs: Sequence[Planned], out: Path, console: RunConsole, with_test: bool = False) -> None:
    """Train what is not finished, and add each result to ``results.json`` in `out`.

    A result that ``results.json`` holds already, of the same recipe, is kept: its run may be on another machine. Other
    processes may add results to the file meanwhile.

    Args:
        runs: the runs, in the order in which they are trained.
        out: folder of ``results.json``.
        console: for progress.
        with_test: whether results have accuracies on the test images, for recipes that were chosen before.

    Raises:
        Interrupted: a signal arrived; the same call continues.
    """
    for run in left(runs, out):
        if ARMS[run.key.arm].taught:
            _train_alone(_teacher(run.key.seed, run.key.epochs, out), out, console, with_test)
        if run.key.student is None:
            summary = seeds.run(run.config, console)
            text = RunFolder(run.config).metrics_file.read_text()
            lines = [line for line in map(json.loads, text.splitlines()) if line["phase"] == FAMILY]
            accuracies = [student["last_epoch_accuracy"] for student in summary["students"]]
            test = {"accuracy": accuracies, "ensemble": summary["last_epoch_ensemble_accuracy"]}
            test = _with_images(test, run.config, FAMILY) if with_test else None
            results.add(out / RESULTS, results.entry(run.key, lines, test))
        else:
            _train_alone(run, out, console, with_test)


def _train_alone(run: Planned, out: Path, console: RunConsole, with_test: bool) -> None:
    """Train a student alone, or find it trained, and add its result."""
    result = train_alone(run.config, run.key.student, console)
    test = {"accuracy": result.last_test.accuracy, "ensemble": None}
    test = _with_images(test, run.config, phase_of(run.config, run.key.student)) if with_test else None
    results.add(out / RESULTS, results.entry(run.key, result.history, test))


def _with_images(test: dict[str, Any], config: TrainConfig, phase: str) -> dict[str, Any]:
    """Return results on the test images with the images that each student classifies correctly."""
    return {**test, **correct_predictions(config, phase)}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.evidence", description=sys.modules[__package__].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--dataset", default="cifar100", help="data set of which the subset is cut")
    parser.add_argument("--data-dir", type=Path, help="folder with the files of a known data set")
    parser.add_argument("--per-class", type=int, default=PER_CLASS, help="training images of a class")
    parser.add_argument("--out", type=Path, required=True, help="folder of the subset, the runs and results.json")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=", ".join(ARMS))
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART",
        help=f"what is trained of an arm: {FAMILY} is its family, and a number a student alone, if the arm has those "
        "(default: all)",
    )  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument(
        "--with-test", action="store_true", help="record results on the test images, for a recipe chosen before"
    )
    parser.add_argument("--status", action="store_true", help="show what is finished and left, and exit")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    keep_freed_memory()  # as oekd_fast.train does
    given, console = parse(arguments), RunConsole()
    runs = planned(given.arms, given.seeds, given.epochs, given.out, given.parts)
    try:
        if given.status:
            unrecorded = left(runs, given.out)
            if recorded := len(runs) - len(unrecorded):
                print_line(console, f"{recorded} of {len(runs)} runs are recorded in {given.out / 'results.json'}.")
            if not unrecorded:
                return 0
            found = statuses([run.config for run in unrecorded], given.out, [run.phases for run in unrecorded])
            table = table_of_columns(columns(found), ("trained",), console.width)
            if table is not None:
                console.print(table)
            print_line(console, summary_line(found))
            return 0
        if not is_written(given.out / "subset"):
            source = load_dataset(given.dataset, data_dir=given.data_dir)
            write_subset(source.train, source.test, given.per_class, given.out / "subset")
        train(runs, given.out, console, given.with_test)
    except Interrupted as stopped:
        print_line(console, "Stopped; finished work is saved, and the same command continues.")
        return 128 + (stopped.signal_number or 0)
    except (DataError, ValueError, OSError) as error:
        print_line(console, f"error: {error}")
        return 1
    return 0
