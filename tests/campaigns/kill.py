"""Kill a run at random moments and resume it: ``python -m tests.campaigns.kill --trials 200``.

Each trial trains the smallest family in a forked process, ends it by SIGKILL and resumes it until it finishes. Half of
the moments are times. The other half are calls of the system with which a run writes: before or after a call, and
within a write, of which a part is then on disk. A third of the resumed processes are killed again. Every trial checks
that the last checkpoint that was saved before the kill is found, that the end is the same bit for bit as that of a run
that was not killed, and that no temporary file or lock is left.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from oekd_fast.common.machine import machine
from oekd_fast.config.train_config import TrainConfig
from oekd_fast.runs.checkpoint import load_latest_checkpoint
from oekd_fast.runs.run import train

from ..support.campaign_command import run_command
from ..support.file_calls import count_calls, report_saves
from ..support.forked_runs import fork, smallest_config, smallest_runs, wait
from ..support.small_runs import QUIET, assert_same_run

RESULT = Path(__file__).parent / "results" / "kill.json"
MOMENTS = ("before", "within", "after")


@dataclass(frozen=True)
class Fault:
    """A trial whose resumed run was not right, with the moments of its kills and what was found."""

    trial: int
    kills: list[str]
    found: str


def kill_at(call: int, moment: str, part: float) -> None:
    """Have this process killed at a call; "within" a write, `part` of its bytes are written before."""
    write = os.write

    def act(number: int, name: str, now: str, arguments: tuple) -> None:
        if number != call:
            return
        if moment == "within" and now == "before" and name == "write":
            write(arguments[0], arguments[1][: int(part * len(arguments[1]))])
        if now == moment or (moment == "within" and now == "before"):
            os.kill(os.getpid(), signal.SIGKILL)

    count_calls(act)


class Campaign:
    """Trials in `folder`, each with a run folder of its own that is compared with the run that was not killed.

    Attributes:
        kills: number of kills by kind of moment.
        unharmed: processes that finished before their kill.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._random = folder, random.Random(seed)
        self._config = smallest_config(folder / "data")
        self._errors = folder / "errors.txt"
        self._straight = folder / "straight"
        self.kills: Counter[str] = Counter()
        self.unharmed = 0
        start = time.perf_counter()
        calls_file = folder / "calls"

        def run() -> None:
            count = count_calls(lambda *_: None)
            train(replace(self._config, output_dir=self._straight), QUIET)
            calls_file.write_text(str(count[0]))

        if wait(fork(run, self._errors)):
            raise RuntimeError(self._errors.read_text())
        self._seconds = time.perf_counter() - start
        self.calls = int(calls_file.read_text())

    def trial(self, number: int) -> Fault | None:
        """Kill a run once or several times, finish it, and compare it."""
        config = replace(self._config, output_dir=self._folder / f"run-{number}", resume=True)
        kills, saved = [], {}
        while True:
            moment, prepare, delay = self._moment(timed=number % 2 == 0)
            status, steps = self._killed(config, prepare, delay)
            saved |= steps
            if status == -signal.SIGKILL:
                self.kills[moment.split()[0]] += 1
                kills.append(moment)
                if lost := self._lost(config.run_folder, saved):
                    return Fault(number, kills, lost)
            elif status == 0:
                self.unharmed += 1
            else:
                return Fault(number, kills, self._errors.read_text())
            if self._random.random() > 1 / 3:
                break
        status = wait(fork(lambda: self._finish(config), self._errors))
        if status:
            return Fault(number, kills, self._errors.read_text() if status == 1 else f"exit status {status}")
        shutil.rmtree(config.run_folder)
        return None

    def _moment(self, timed: bool) -> tuple[str, Callable[[], None], float | None]:
        if timed:
            delay = self._random.uniform(0.0, self._seconds)
            return f"time {delay:.3f} s", lambda: None, delay
        call, moment, part = self._random.randint(1, self.calls), self._random.choice(MOMENTS), self._random.random()
        return f"{moment} call {call}", lambda: kill_at(call, moment, part), None

    def _killed(self, config: TrainConfig, prepare: Callable[[], None], delay: float | None) -> tuple[int, dict]:
        """Train in a process that is killed, and return its exit status and the last step saved of each phase."""
        reading, writing = os.pipe()

        def run() -> None:
            os.close(reading)
            write = os.write
            report_saves(lambda name, step: write(writing, f"{name} {step}\n".encode()))
            prepare()
            train(config, QUIET)

        pid = fork(run, self._errors)
        os.close(writing)
        if delay is not None:
            time.sleep(delay)
            os.kill(pid, signal.SIGKILL)  # a process that has ended is not gone before `wait`
        with os.fdopen(reading) as pipe:
            lines = pipe.read().split("\n")[:-1]
        return wait(pid), {name: int(step) for name, step in map(str.split, lines)}

    def _lost(self, folder: Path, saved: dict[str, int]) -> str:
        """Say which checkpoint that was saved cannot be found; an empty string if all can."""
        for name, step in saved.items():
            loaded = load_latest_checkpoint(folder / "checkpoints" / name)
            if loaded is None or loaded.step < step:
                return f"{name}: step {step} was saved, found {None if loaded is None else loaded.step}"
        return ""

    def _finish(self, config: TrainConfig) -> None:
        train(config, QUIET)
        assert_same_run(self._straight, config.run_folder)
        ends = [sorted(_names(folder)) for folder in (self._straight, config.run_folder)]
        assert ends[0] == ends[1], f"files differ: {set(ends[0]) ^ set(ends[1])}"


def _names(folder: Path) -> list[str]:
    # The revision of a checkpoint says how often a step was saved.
    return [str(path.relative_to(folder)).split("-r")[0].split(".pt")[0] for path in folder.rglob("*")]


def run_campaign(trials: int, seed: int, folder: Path) -> dict[str, Any]:
    """Run the trials in `folder` and return the result, as the JSON file holds it."""
    start, faults = time.perf_counter(), []
    with smallest_runs():
        campaign = Campaign(folder, seed)
        for number in range(trials):
            fault = campaign.trial(number)
            if fault is not None:
                faults.append(fault)
                print(f"trial {number}: {fault.kills}: {fault.found}", flush=True)
    return {
        "trials": trials,
        "seed": seed,
        "kills": dict(campaign.kills),
        "finished_before_the_kill": campaign.unharmed,
        "calls_of_a_run": campaign.calls,
        "faults": [asdict(fault) for fault in faults],
        "seconds": round(time.perf_counter() - start, 1),
        "machine": machine(),
        "complete": True,
    }


def main() -> int:
    """Run the command line; the exit status is 1 if a fault was found."""
    result = run_command(__doc__, run_campaign, count=("--trials", 200, "runs to kill"), result=RESULT)
    print(f"{result['trials']} trials, kills {result['kills']}, {len(result['faults'])} faults, {result['seconds']} s")
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
