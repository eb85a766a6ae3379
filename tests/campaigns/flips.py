"""Damage the files of runs, and let their writes fail: ``python -m tests.campaigns.flips --flips 1000``.

1. Flips: a random bit of a file is inverted, or the file is cut at a random place. Then it is read as the commands do.
   The result is the one that was written, or an error of one line that names the file. Where a checkpoint is
   damaged, the one before it is used, with a warning of one line; every 20th of these runs is trained to its end and
   compared with the run that was not damaged.
2. Failing writes: the smallest run is trained in a forked process where one call of the system fails, and all later
   calls of its kind, as on a full disk, a read-only file system or a failing disk. This is done for each call of a run.
   The run ends with an error of one line that names a path in its folder, or is complete. No checkpoint that was saved
   is lost, and the run resumes to the same end, bit for bit.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import random
import shutil
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from oekd_fast import load_student
from oekd_fast.common.machine import machine
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.reporting.finished_runs import read_run
from oekd_fast.runs.checkpoint import CheckpointError, load_latest_checkpoint
from oekd_fast.runs.run import train
from oekd_fast.runs.run_folder import RunFolder

from ..support.file_calls import count_calls, report_saves
from ..support.forked_runs import fork, smallest_config, smallest_runs, wait
from ..support.small_runs import QUIET, assert_equal_except_times, assert_same_run

RESULT = Path(__file__).parent / "results" / "flips.json"
TRAINED_TO_THE_END = 20  # one in so many damaged checkpoints
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT)
FAILING = ("open", "write", "fsync", "replace", "mkdir")  # calls that fail on a full, read-only or broken disk


def damage(path: Path, generator: random.Random) -> str:
    """Invert a bit of a file or cut it, and say which."""
    content = bytearray(path.read_bytes())
    if generator.random() < 0.25:
        length = generator.randrange(len(content))
        path.write_bytes(content[:length])
        return f"{path.name} cut at {length} of {len(content)} bytes"
    bit = generator.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    return f"{path.name} with bit {bit} of {8 * len(content)} inverted"


class Flips:
    """Damages to the files of two runs in `folder`: one that was stopped, and one that is finished.

    Attributes:
        outcomes: number of flips by kind of file and by "same result", "refused" and "skipped with a warning".
        faults: descriptions of wrong results and of errors that are no line with the name of the file.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._random = folder, random.Random(seed)
        self._config = smallest_config(folder / "data")
        self._finished = folder / "finished"
        train(replace(self._config, output_dir=self._finished), QUIET)
        self.outcomes: dict[str, Counter[str]] = {}
        self.faults: list[str] = []
        self._checkpoints = 0

    def flip(self, kind: str) -> None:
        """Damage a file of `kind`, "config", "metrics", "summary", "student" or "checkpoint", and read it."""
        run = self._folder / "damaged"
        shutil.copytree(self._finished, run)
        try:
            outcome = self._checkpoint(run) if kind == "checkpoint" else self._file(run, kind)
        finally:
            shutil.rmtree(run)
        self.outcomes.setdefault(kind, Counter())[outcome] += 1

    def _file(self, run: Path, kind: str) -> str:
        names = {
            "config": ["config.json"],
            "metrics": ["metrics.jsonl"],
            "summary": ["summary.json"],
            "student": ["students/student_1.json", "students/student_1.safetensors"],
        }
        path = run / self._random.choice(names[kind])
        read = self._student if kind == "student" else self._report
        expected = read(self._finished)
        what = damage(path, self._random)
        try:
            found = read(run)
        except (ValueError, OSError) as error:
            return self._refused(what, error, path.stem)
        except Exception as error:
            self.faults.append(f"{what}: {type(error).__name__}: {error}")
            return "fault"
        return self._compared(what, expected, found)

    def _refused(self, what: str, error: Exception, name: str) -> str:
        message = str(error)
        if "\n" in message or name not in message:
            self.faults.append(f"{what}: expected one line with {name}, got {message!r}")
            return "fault"
        return "refused"

    def _report(self, run: Path) -> dict[str, Any]:
        read = read_run(run)
        # A damaged config may also be refused where the run is resumed.
        RunFolder(replace(self._config, output_dir=run, resume=True))
        return {"config": read.config.training_fields(), "summary": read.summary, "histories": read.histories}

    def _student(self, run: Path) -> dict[str, Any]:
        student = load_student(run / "students" / "student_1")
        return {"weights": dict(student.state_dict()), "metadata": repr(student.metadata)}

    def _checkpoint(self, run: Path) -> str:
        """Damage one of the two checkpoints of a phase, or its checksum."""
        phase = self._random.choice(sorted((run / "checkpoints").iterdir()))
        good = load_latest_checkpoint(phase)
        newest = self._random.random() < 0.75
        checkpoints = sorted(phase.glob("*.pt"))
        path = checkpoints[-1 if newest else 0]
        if self._random.random() < 0.25:
            path = path.with_name(path.name + ".sha256")
        what = damage(path, self._random)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                loaded = load_latest_checkpoint(phase)
            except CheckpointError as error:
                return self._refused(what, error, path.name)
        lines = [str(warning.message) for warning in warned]
        if any("\n" in line or path.name.removesuffix(".sha256") not in line for line in lines):
            self.faults.append(f"{what}: expected one line that names the file, got {lines}")
            return "fault"
        if not lines or not newest:
            return self._compared(what, good.state, loaded.state)
        self._checkpoints += 1
        if loaded.step >= good.step:
            self.faults.append(f"{what}: a warning, but step {loaded.step} was loaded")
            return "fault"
        if self._checkpoints % TRAINED_TO_THE_END == 0:
            self._train_to_the_end(run, what)
        return "skipped with a warning"

    def _compared(self, what: str, expected: dict[str, Any], found: dict[str, Any]) -> str:
        try:
            assert_equal_except_times(expected, found, where=what)
        except AssertionError:
            self.faults.append(f"{what}: another content")
            return "fault"
        return "same result"

    def _train_to_the_end(self, run: Path, what: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            train(replace(self._config, output_dir=run, resume=True), QUIET)
        try:
            assert_same_run(self._finished, run)
        except AssertionError as error:
            self.faults.append(f"{what}: the resumed run ends differently: {error}")


class FailingWrites:
    """Runs in `folder` whose writes fail, each compared with a run whose writes did not.

    Attributes:
        calls: number of calls of a run that can fail.
        outcomes: number of runs by "error" and "complete".
        faults: descriptions of what was wrong.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._random = folder, random.Random(seed)
        self._config = smallest_config(folder / "data")
        self._straight, self._errors = folder / "straight", folder / "errors.txt"
        self.outcomes: Counter[str] = Counter()
        self.faults: list[str] = []

        def run() -> None:
            failing = [0]

            def act(number: int, name: str, moment: str, arguments: tuple) -> None:
                failing[0] += moment == "before" and can_fail(name, arguments)

            count_calls(act)
            train(replace(self._config, output_dir=self._straight), QUIET)
            (folder / "calls").write_text(str(failing[0]))

        if wait(fork(run, self._errors)):
            raise RuntimeError(self._errors.read_text())
        self.calls = int((folder / "calls").read_text())

    def trial(self, call: int) -> None:
        """Let the call with this number fail, and all later calls of its kind."""
        code = self._random.choice(ERRORS)
        config = replace(self._config, output_dir=self._folder / f"run-{call}")
        outcome = self._folder / "outcome"
        outcome.unlink(missing_ok=True)

        def run() -> None:
            functions = {name: getattr(os, name) for name in (*FAILING, "close", "unlink", "ftruncate")}
            saved: dict[str, int] = {}
            report_saves(saved.__setitem__)
            fail_from(call, code)
            message = ""
            try:
                train(config, QUIET)
            except (OSError, CheckpointError) as error:
                message = str(error)
            for name, function in functions.items():
                setattr(os, name, function)
            check_message(message, config)
            check_saved(config, saved)
            train(replace(config, resume=True), QUIET)
            assert_same_run(self._straight, config.run_folder)
            outcome.write_text("error" if message else "complete")

        if wait(fork(run, self._errors)):
            last = self._errors.read_text().strip() if self._errors.exists() else "the process was killed"
            self.faults.append(f"call {call}, {errno.errorcode[code]}: {last}")
            self.outcomes["fault"] += 1
        else:
            self.outcomes[outcome.read_text()] += 1
        shutil.rmtree(config.run_folder, ignore_errors=True)


def fail_from(call: int, code: int) -> None:
    """Let a call fail, counted over the calls of `FAILING`, and all later calls of its kind in this process.

    A failing write writes the first half of its data if it is the first to fail, as on a disk that becomes full.
    """
    write = os.write
    count, kind = [0], []

    def act(number: int, name: str, moment: str, arguments: tuple) -> None:
        if moment != "before" or not can_fail(name, arguments):
            return
        count[0] += 1
        if count[0] == call:
            kind.append(name)
            if name == "write":
                write(arguments[0], arguments[1][: len(arguments[1]) // 2])
        if name in kind:  # as the system does, with the name of the file unless the call takes a descriptor
            named = () if name in ("write", "fsync") else (str(arguments[0]),)
            raise OSError(code, os.strerror(code), *named)

    count_calls(act)


def can_fail(name: str, arguments: tuple) -> bool:
    """Return whether a call changes a file or a folder, or opens a file to change it."""
    if name == "open":
        return arguments[1] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) != 0
    return name in FAILING


def check_message(message: str, config: TrainConfig) -> None:
    """Raise AssertionError unless an error is one line that names a path in the run folder."""
    assert "\n" not in message, f"expected one line, got {message!r}"
    assert not message or str(config.run_folder) in message, f"expected a path in the run folder, got {message!r}"


def check_saved(config: TrainConfig, saved: dict[str, int]) -> None:
    """Raise AssertionError unless the last checkpoint of each phase, or a later one, can be loaded."""
    for name, step in saved.items():
        loaded = load_latest_checkpoint(config.run_folder / "checkpoints" / name)
        assert loaded is not None and loaded.step >= step, f"{name}: step {step} was saved and is lost"


# Shares of the flips by kind of file.
KINDS = ("checkpoint", "checkpoint", "metrics", "summary", "student", "config")


def run_flips(flips: int, seed: int, folder: Path) -> dict[str, Any]:
    """Damage files `flips` times and return the result."""
    campaign = Flips(folder, seed)
    for number in range(flips):
        campaign.flip(KINDS[number % len(KINDS)])
    outcomes = {kind: dict(counts) for kind, counts in sorted(campaign.outcomes.items())}
    return {"flips": flips, "outcomes": outcomes, "faults": campaign.faults}


def run_failing_writes(every: int, seed: int, folder: Path, first: int = 1) -> dict[str, Any]:
    """Let each of every `every` calls fail, from call `first` on, and return the result."""
    campaign = FailingWrites(folder, seed)
    for call in range(first, campaign.calls + 1, every):
        campaign.trial(call)
    tried = len(range(first, campaign.calls + 1, every))
    return {
        "calls_of_a_run": campaign.calls,
        "calls_that_failed": tried,
        "outcomes": dict(campaign.outcomes),
        "faults": campaign.faults,
    }


def run_part(part: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Run a part of the campaign in a temporary folder and add its time."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
        result = part(Path(folder))
        for fault in result["faults"]:
            print(fault, flush=True)
        return result | {"seconds": round(time.perf_counter() - start, 1)}
    raise SystemExit(130)


def main() -> int:
    """Run the command line; the exit status is 1 if a fault was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=1000, help="files to damage (default: 1000)")
    parser.add_argument("--every", type=int, default=1, help="let every n-th call fail (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of places and errors (default: 0)")
    parser.add_argument("--output", type=Path, default=RESULT, help="file of the result (default: %(default)s)")
    options = parser.parse_args()
    with smallest_runs():
        flips = run_part(lambda folder: run_flips(options.flips, options.seed, folder))
        writes = run_part(lambda folder: run_failing_writes(options.every, options.seed, folder))
    complete = options.flips >= 1000 and options.every == 1
    result = {"seed": options.seed, "flips": flips, "failing_writes": writes}
    options.output.write_text(json.dumps(result | {"machine": machine(), "complete": complete}, indent=1) + "\n")
    print(f"flips {flips['outcomes']}, failing writes {writes['outcomes']}")
    return 1 if flips["faults"] or writes["faults"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
