"""Measure what needs a GPU, the most important first, in a few minutes.

    python -m bench.gpu --out DIR [--minutes 5] [--parts NAME ...] [--dry-run]

Each part runs in a process of its own with a time limit. DIR/results.jsonl and DIR/log.txt are on disk after each
result, so that nothing is lost if a process, this command or the machine ends. The same command again measures only
what is missing. --dry-run runs every part on the CPU at tiny sizes, with placeholders for times.
"""

from __future__ import annotations

import argparse
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from . import advice, goals
from .parts import LEVELS, PARTS, Part, limit, named, planned
from .record import Record
from .runner import Console, Runner, Start, start_worker

WIDTH = 80


class Stopped(Exception):
    """A signal ends the run."""


def run(
    folder: Path,
    seconds: float,
    parts: Sequence[Part] = PARTS,
    dry_run: bool = False,
    start: Start | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Measure parts into a folder, within `seconds`.

    Args:
        start: Starts a worker; None for a process of bench.gpu.worker.
        clock: Returns the time in seconds.

    Returns:
        The exit status: 0 if every part was measured and is right, else 1.

    Raises:
        ValueError: the folder holds results of another card, or of a dry run.
    """
    end = clock() + seconds
    record, console = Record(folder), Console(folder)
    record.close_last_line()
    record.read()
    if record.runs and record.runs[-1]["dry_run"] != dry_run:
        kind = "dry run" if record.runs[-1]["dry_run"] else "measured run"
        raise ValueError(f"--out: expected a folder of its own for this run, {folder} holds results of a {kind}")
    card_before = record.environment().get("gpu")
    record.append(run={"seconds": seconds, "dry_run": dry_run, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
    record.read()
    record.part("environment").done.clear()  # of another machine, perhaps
    todo = [part for part in parts if not record.part(part.name).complete]
    plan = planned(todo, seconds)
    for row in textwrap.wrap(f"bench.gpu, {seconds / 60:g} minutes: {', '.join(part.name for part in plan)}", WIDTH):
        console.say(row)
    if dry_run:
        console.say("DRY RUN on the CPU: times are placeholders, nothing is measured.")
    runner = Runner(record, console, start or start_worker(folder, dry_run), clock)

    def measure(part: Part) -> None:
        left = end - clock()
        if part in plan:
            plan.remove(part)
        most = limit(part, plan, left)
        if most is None:
            console.say(f"-- {part.name}: not run, {max(left, 0):.0f} s left")
            return
        console.say(f"-- {part.name} (at most {most:.0f} of {left:.0f} s)")
        begun = clock()
        runner.run(part, most)
        state = record.part(part.name)
        for key, error in state.errors.items():
            failed = f"FAILED {key}: {error.splitlines()[0]}"
            for row in textwrap.wrap(failed, WIDTH, initial_indent="  ", subsequent_indent="      "):
                console.say(row)
        console.say(f"   {state.ended} in {clock() - begun:.0f} s")
        record.write_report()

    try:
        with signals_raise():
            for level in LEVELS:
                of_level = [part for part in todo if part.level == level]
                for part in of_level:
                    measure(part)
                    if part.name == "environment":
                        check_environment(record, card_before)
                for part in of_level:
                    if record.part(part.name).errors and level == LEVELS[0]:
                        measure(part)  # once more, before the next level
    except Stopped as stopped:
        console.say(f"stopped by {stopped}")
    conclude(record, console)
    wrong = any(r.get("right") is False for results in record.results().values() for r in results.values())
    return int(wrong or not all(record.part(part.name).complete for part in parts))


def check_environment(record: Record, card_before: str | None) -> None:
    """Check that the device is usable, and the one that earlier results of the folder are from.

    Raises:
        Stopped: it is not.
    """
    state = record.part("environment")
    if not state.complete:
        raise Stopped("the part environment, which all others need")
    card = record.environment().get("gpu")
    if card_before not in (None, card):
        raise ValueError(f"--out: expected results of {card} alone, {record.folder} holds results of {card_before}")


def conclude(record: Record, console: Console) -> None:
    """Print the goals and what to look at next, and write the report."""
    parts = record.results()
    console.say()
    console.say("Goals")
    for line in goals.lines(parts):
        console.say(line[:WIDTH])
    console.say()
    console.say("What to look at next")
    found = advice.advice(parts, record.errors())
    for line in found or ["Nothing by the rules of bench/gpu/advice.py."]:
        for row in textwrap.wrap(line, WIDTH - 2, initial_indent="- ", subsequent_indent="  "):
            console.say(row)
    console.say(f"written to {record.write_report()}")


class signals_raise:
    """Within this context, SIGINT, SIGTERM and SIGHUP raise Stopped."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __enter__(self) -> None:
        self._before = [signal.signal(number, self._stop) for number in self.SIGNALS]

    def __exit__(self, *exception) -> None:
        for number, handler in zip(self.SIGNALS, self._before, strict=True):
            signal.signal(number, handler)

    @staticmethod
    def _stop(number: int, frame) -> None:
        raise Stopped(signal.Signals(number).name)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the results")
    parser.add_argument("--minutes", type=float, default=5.0, help="length of the run (default: %(default)g)")
    names = ", ".join(part.name for part in PARTS)
    parser.add_argument("--parts", type=named, nargs="+", metavar="NAME", help=f"measure only these: {names}")
    parser.add_argument("--dry-run", action="store_true", help="run on the CPU; nothing is measured")
    given = parser.parse_args()
    parts = [part for part in PARTS if not given.parts or part in given.parts or part.name == "environment"]
    try:
        sys.exit(run(given.out, 60 * given.minutes, parts, given.dry_run))
    except ValueError as error:
        parser.exit(2, f"bench.gpu: {error}\n")


if __name__ == "__main__":
    main()
