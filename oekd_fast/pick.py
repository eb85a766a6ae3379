"""Pick a student of a finished run by a budget: ``python -m oekd_fast.pick RUN --max-ms 5``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

try:
    from rich.console import Console
except ImportError as error:
    raise ImportError("the choice of a student needs more packages: pip install 'oekd_fast[train]'") from error

from oekd_fast.common.quantities import bytes_text
from oekd_fast.common.tables import table_of_columns
from oekd_fast.common.text import print_line, replace_unencodable_output
from oekd_fast.config.options import parse
from oekd_fast.config.section import Section, at_least, setting
from oekd_fast.latency.result import MARK, milliseconds
from oekd_fast.runs.console import RunConsole, finish_output, warnings_as_lines

if TYPE_CHECKING:
    from oekd_fast.choice.budget import Budget
    from oekd_fast.choice.candidates import Candidate
    from oekd_fast.choice.pick import Choice, Selection

# Columns of the table that are left out first where the output is narrow, in this order.
_OPTIONAL_COLUMNS = ("file", "p95 ms", "test %", "parameters", "ms")


@dataclass(frozen=True, kw_only=True)
class PickConfig(Section):
    """Pick the student of a finished run that fits a budget."""

    run: Path = field(metadata={"metavar": "RUN"})
    """Run folder."""
    max_ms: float | None = setting(None, unset="no limit")
    """Milliseconds of a call, at the median."""
    max_parameters: str | None = setting(None, unset="no limit")
    """Number of parameters, such as 100000, 100k or 1.5M."""
    max_bytes: str | None = setting(None, unset="no limit")
    """Size of the file with the weights, such as 500kB, 1.5M or 2MiB."""
    min_accuracy: float | None = setting(None, unset="no limit")
    """Validation accuracy in percent; the student with the fewest parameters is picked then."""
    batch: int = setting(1, at_least(1))
    """Images of a call."""
    runtime: Literal["auto", "eager", "onnx"] = "auto"
    """Runtime whose latency counts; auto is ONNX Runtime if it was measured, else PyTorch."""
    threads: int | None = setting(None, at_least(1), unset="the most that were measured")
    """Threads on the CPU."""
    device: str | None = setting(None, unset="an accelerator if one was measured, else cpu")
    """Device whose latency counts: cpu, cuda, ..."""
    measure: bool = False
    """Measure on this machine, for at most two minutes, instead of reading what the run has measured."""
    model: str | None = setting(None, unset="none is run")
    """Function that builds the networks, FILE.py:FUNCTION, of a run whose model is one; its code runs."""
    export: Path | None = setting(None, unset="nothing is exported")
    """File that the choice is exported to, NAME.onnx or NAME.pt2; it takes images in uint8."""


def pick(config: PickConfig, console: Console | None = None) -> Choice:
    """Pick the student that `config` describes, and print the candidates and the reason.

    Args:
        config: the run and the budget.
        console: where the table is printed; standard output by default.

    Raises:
        ReportError: the run folder does not hold a finished run, or one of its files is damaged.
        NothingFitsError: nothing fits; the table has been printed.
        ValueError: a limit is out of range, the setting was not measured, or the device is unavailable.
        ImportError: a package that the export needs is not installed.
        ExportError: the choice cannot be exported.
        OSError: a file cannot be read or written.
    """
    # These import torch, which --help does not need.
    from oekd_fast.choice.budget import Budget
    from oekd_fast.choice.measure import SECONDS
    from oekd_fast.choice.pick import select
    from oekd_fast.reporting.exported_run import networks_of

    console = console or Console()
    budget = Budget.of(config.max_ms, config.max_parameters, config.max_bytes, config.min_accuracy)
    if config.export is not None:
        _check_export(config.export)
    if config.measure:
        print_line(console, f"Measuring latency on this machine, at most {SECONDS:g} s")
    runtime = None if config.runtime == "auto" else config.runtime
    called = config.batch, runtime, config.threads, config.device
    selection = select(config.run, budget, *called, config.measure, config.model)
    _show(console, selection)
    choice = selection.choose()
    for line in _reasons(choice, budget):
        print_line(console, line)
    if config.export is not None:
        (network,) = networks_of(selection.run, [choice.chosen.export_name], config.model)
        file = network.export(config.export)
        print_line(console, f"Exported: {file.path}, {bytes_text(file.size)}")
    return choice


def _check_export(path: Path) -> None:
    """Raise ValueError if nothing can be exported to `path`, before anything is measured."""
    from oekd_fast.family.exporting.export import checked_path

    try:
        checked_path(path)
    except ValueError as error:
        raise ValueError(f"export: {str(error).removeprefix('path: ')}") from error


def _show(console: Console, selection: Selection) -> None:
    """Print the candidates. No number is cut: columns that do not fit are left out."""
    columns: dict[str, list[str]] = {}
    for candidate in selection.candidates:
        latency = candidate.latency
        for heading, cell in (
            ("network", candidate.name),
            ("parameters", f"{candidate.parameters:,}"),
            ("file", "-" if candidate.file_bytes is None else bytes_text(candidate.file_bytes)),
            ("ms", "-" if latency is None else latency.text),
            ("p95 ms", "-" if latency is None else milliseconds(latency.p95_ms)),
            ("val %", f"{candidate.validation_accuracy:.2f}"),
            ("test %", f"{candidate.test_accuracy:.2f}"),
            ("fits", _fits(candidate, selection.budget)),
        ):
            columns.setdefault(heading, []).append(cell)
    if selection.setting is None:
        del columns["ms"], columns["p95 ms"]
    print_line(console, selection.run.title)
    table = table_of_columns(columns, _OPTIONAL_COLUMNS, console.width)
    if table is None:
        for candidate in selection.candidates:
            print_line(console, f"{candidate.name}: {_fits(candidate, selection.budget)}")
    else:
        console.print(table)
    if selection.setting is not None:
        print_line(console, f"ms: median latency of a call, {selection.setting}")
    for remark in selection.remarks:
        print_line(console, f"{MARK} {remark}")


def _fits(candidate: Candidate, budget: Budget) -> str:
    """Return "yes", or the limits that `candidate` misses: "no: ms, bytes"."""
    missed = budget.excess(candidate)
    return "no: " + ", ".join(name.partition("_")[2] for name in missed) if missed else "yes"


def _reasons(choice: Choice, budget: Budget) -> Iterator[str]:
    chosen = choice.chosen
    yield f"Choice: {chosen.name}, {choice.reason}"
    yield (
        f"Its accuracy is {chosen.validation_accuracy:.2f} % on validation images, by which the choice was made, and "
        f"{chosen.test_accuracy:.2f} % on test images"
    )
    if budget.min_accuracy is not None and chosen.test_accuracy < budget.min_accuracy:
        yield f"Its test accuracy is below the minimum of {budget.min_accuracy:g} %"
    if choice.weights is not None:
        yield f"Weights: {choice.weights}"


def main(arguments: Sequence[str] | None = None, prog: str = "python -m oekd_fast.pick") -> int:
    """Run the command line and return the exit status: 1 if nothing fits.

    Args:
        arguments: the command line; that of the process by default.
        prog: the command, for usage and errors.
    """
    replace_unencodable_output()
    console, errors = RunConsole(), RunConsole(stderr=True)
    try:
        config = PickConfig(**parse(PickConfig, prog, arguments))
        with warnings_as_lines(errors):
            pick(config, console)
    except (ImportError, TypeError, ValueError, OSError, RuntimeError) as error:
        print_line(errors, f"error: {error}")
        return 1
    finally:
        finish_output(console, errors)
    return 0


if __name__ == "__main__":
    sys.exit(main())
