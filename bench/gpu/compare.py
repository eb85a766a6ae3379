"""Compares runs of bench.gpu, of one card or of several, by ratios.

    python -m bench.gpu.compare DIR [DIR ...] [--floors]

A row is a figure, and a column is a run. Ratios of times in one run, and shares of the bandwidth of a copy in that run,
mean the same on each card; times do not and are left out. --floors adds the captured step's time over its lower bounds
by bench.model, with the bandwidth of the run's copy; computing these takes a minute.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from ..model.roofline import card_named, step_floor
from ..model.step_cost import step_costs
from ..step.problem import StepProblem
from . import goals
from .figures import copy_bandwidth
from .record import Record

NAME = 44  # columns of the name of a figure


def ratios(parts: goals.Parts) -> dict[str, float]:
    """Return the figures of a run that can be compared between cards, by name."""
    found = {}
    for goal in goals.GOALS:
        if goal.same_on_cards:
            found |= {f"{goal.name}, {case}": value for case, value in goal.values(parts).items()}
    for key, result in goals.losses(parts):
        for ours in ("value_and_grad", "differentiable"):
            for theirs, factor in result["derived"].get(ours, {}).get("faster_than", {}).items():
                found[f"loss {key}, {ours}, times faster than {theirs}"] = factor
    for size, result in goals.steps(parts):
        for theirs, factor in result["speedups"].get("ours_captured", {}).items():
            found[f"step {size}, captured, times faster than {theirs}"] = factor
        for name, profile in result.get("profiles", {}).items():
            found[f"step {size}, {name}, busy share"] = profile["busy_share"]
            found[f"step {size}, {name}, kernels"] = profile["launches"]
    return found


def floors(parts: goals.Parts, card: str) -> dict[str, float]:
    """Return the captured step's time over each of its lower bounds; empty for an unknown card."""
    known, bandwidth, found = card_named(card), copy_bandwidth(parts), {}
    if known is None:
        return {}
    known = replace(known, copy_bandwidth=bandwidth or known.copy_bandwidth)
    for size, result in goals.steps(parts):
        ours = result["variants"].get("ours_captured")
        if ours and f"step {size}, captured, over the fused bound" not in found:
            problem = StepProblem(**result["problem"])
            for model, cost in step_costs(problem).items():
                seconds = step_floor(cost, known, problem.precision).seconds
                found[f"step {size}, captured, over the {model} bound"] = ours["ms"] / (1e3 * seconds)
    return found


def lines(runs: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Yield a table: a row a figure, a column a run; "-" where a run has no such figure."""
    names = dict.fromkeys(name for figures in runs.values() for name in figures)
    yield " " * NAME + "".join(f" {run:>16}" for run in runs)
    for name in names:
        cells = (f"{figures[name]:.2f}" if name in figures else "-" for figures in runs.values())
        indent = name if len(name) <= NAME else f"{name}\n{' ' * NAME}"
        yield f"{indent:<{NAME}}" + "".join(f" {cell:>16}" for cell in cells)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="folder of a run's results")
    parser.add_argument("--floors", action="store_true", help="add the step's time over its lower bounds")
    given = parser.parse_args()
    runs = {}
    for folder in given.folders:
        if not (folder / "results.jsonl").is_file():
            parser.exit(2, f"bench.gpu.compare: expected a folder with results.jsonl, got {folder}\n")
        record = Record(folder)
        record.read()
        card, parts = record.environment().get("gpu", "unknown"), record.results()
        runs[f"{folder.name[:5]} {card.removeprefix('NVIDIA ')[:10]}"] = ratios(parts) | (
            floors(parts, card) if given.floors else {}
        )
    print("\n".join(lines(runs)))


if __name__ == "__main__":
    main()
