"""Count the device operations of a training step.

    python -m bench.operations [--model resnet20 resnet110] [--precision bf16] [--operators] [--json FILE]

No GPU is needed and nothing is timed. The first table has a row for each kind of operation, with the number of
operations and of launches; `--operators` lists the operators too. `bench.operations.step` says what is left out.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from oekd_fast.common.machine import machine

from .. import result_file
from .count import ALL_KINDS, DeviceOperations
from .step import count_step


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.operations", description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=["resnet20", "resnet110"], help="networks; default: %(default)s")
    parser.add_argument("--num-students", type=int, default=5, help="students of a family; default: %(default)s")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16", help="default: %(default)s")
    parser.add_argument("--operators", action="store_true", help="list the operators too")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args(arguments)
    # The feature loss is Triton's; the CPU takes it in the interpreter only.
    os.environ.setdefault("TRITON_INTERPRET", "1")

    torch.set_num_threads(1)  # the step is tiny
    counted = {model: count_step(model, options.num_students, options.precision) for model in options.model}
    for line in table(counted):
        print(line)
    if options.operators:
        for line in operators(counted):
            print(line)
    if options.json:
        what = f"device operations of a step of {options.num_students} students, {options.precision}"
        result_file.write(options.json, result_file.report(what, machine(), map(as_dict, counted, counted.values())))


def table(counted: dict[str, DeviceOperations]) -> Iterator[str]:
    """Return the lines of a table with operations and launches of each network, by kind."""
    yield f"{'operations / launches':28}" + "".join(f"{model:>20}" for model in counted)
    for kind in ALL_KINDS:
        yield f"{kind:28}" + "".join(_cell(c.kinds[kind], c.launches[kind]) for c in counted.values())
    yield f"{'in all':28}" + "".join(_cell(c.kinds.total(), c.launches.total()) for c in counted.values())


def operators(counted: dict[str, DeviceOperations]) -> Iterator[str]:
    """Return the lines of a table with the number of operations of each network, by operator."""
    names = {name: max(c.operators[name] for c in counted.values()) for c in counted.values() for name in c.operators}
    for name in sorted(names, key=lambda name: (-names[name], name)):
        yield f"{name:48}" + "".join(f"{c.operators[name]:>10}" for c in counted.values())


def as_dict(model: str, counted: DeviceOperations) -> dict:
    """Return the numbers of one network for a result file."""
    return {
        "model": model,
        "operations": counted.kinds.total(),
        "launches": counted.launches.total(),
        "kinds": {kind: counted.kinds[kind] for kind in ALL_KINDS},
        "operators": dict(counted.operators.most_common()),
    }


def _cell(operations: int, launches: int) -> str:
    return f"{operations:>11} / {launches:<6}"
