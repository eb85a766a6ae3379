"""Check a data set before training on it: ``python -m oekd_fast.check_data DATASET [the data options of train]``."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

try:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text  # shows names without interpreting markup
except ImportError as error:
    raise ImportError("the check of data needs more packages: pip install 'oekd_fast[train]'") from error

from oekd_fast.common.tables import simple_table
from oekd_fast.common.text import plain, print_line, replace_unencodable_output, shortened
from oekd_fast.config.data import DataConfig
from oekd_fast.config.options import parse
from oekd_fast.config.section import at_least, setting
from oekd_fast.runs.console import RunConsole, finish_output, warnings_as_lines

if TYPE_CHECKING:
    from oekd_fast.data.assemble import SourceSplits
    from oekd_fast.data.inspection import Duplicates, SplitFacts

NAME_LENGTH = 40
SPLIT_NAMES = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class CheckDataOptions(DataConfig):
    """Check the splits, classes and images of a data set."""

    dataset: str = field(metadata={"metavar": "DATASET"})
    """Data set: digits, a known name such as cifar10, a folder, or owner/name on the Hugging Face hub."""
    max_images: int | None = setting(None, at_least(1), unset="all")
    """Number of images to decode of each split, from its start."""
    max_classes: int = setting(20, at_least(1))
    """Number of classes in the table of classes, the largest first."""
    examples: int = setting(3, at_least(0))
    """Number of examples shown for each kind of duplicates and of problems."""


@dataclass(frozen=True)
class DataCheck:
    """Result of a check.

    Args:
        name: the data set, as it was given.
        classes: name of each class, in the order of the labels.
        notes: what was taken as what, and what was left out.
        splits: facts about the stored splits.
        duplicates: images with equal pixels.
        used: number of training, validation and test images that training has; None if it cannot start.
        problem: a line that says why training cannot start, or None.
    """

    name: str
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    splits: Sequence[SplitFacts]
    duplicates: Sequence[Duplicates]
    used: tuple[int, int, int] | None
    problem: str | None


def check_data(options: CheckDataOptions) -> DataCheck:
    """Read a data set, decode its images, compare them, and try what training does first.

    Raises:
        DataError: the data set cannot be read.
    """
    # These import torch, which --help does not need.
    from oekd_fast.data.inspection import find_duplicates, inspect_splits
    from oekd_fast.data.load import read_splits
    from oekd_fast.data.readers.reading import ReadOptions

    reading = ReadOptions(image_column=options.image_column, label_column=options.label_column, keep_encoded=True)
    source = read_splits(options.dataset, options.data_dir, reading)
    splits = inspect_splits(source.splits, options.max_images)
    used, problem = _as_for_training(options, source, splits)
    duplicates = find_duplicates(splits, options.examples)
    return DataCheck(options.dataset, source.classes, source.notes, splits, duplicates, used, problem)


def _as_for_training(
    options: CheckDataOptions, source: SourceSplits, splits: Sequence[SplitFacts]
) -> tuple[tuple[int, int, int] | None, str | None]:
    """Return the sizes of the splits that training has, or the error that it ends with."""
    from oekd_fast.data.inspection.training import training_splits

    try:
        dataset = training_splits(options.dataset, source.classes, splits, options)
    except ValueError as error:
        return None, str(error)
    return tuple(len(getattr(dataset, name)) for name in SPLIT_NAMES), None


def show(console: Console, check: DataCheck, options: CheckDataOptions) -> None:
    """Print the tables of a check."""
    for note in check.notes:
        print_line(console, note)
    console.print(_split_table(check))
    if options.max_images is not None:
        print_line(console, f"The first {options.max_images:,} images of each split were decoded.")
    if check.used is not None:
        train, validation, test = check.used
        print_line(console, f"A run trains on {train:,} images, validates on {validation:,} and tests on {test:,}.")
    console.print()
    console.print(_class_table(check, options.max_classes))
    for line in _class_lines(check, options.max_classes):
        print_line(console, line)
    console.print()
    console.print(_duplicate_table(check.duplicates))
    for line in _examples(check, options.examples):
        print_line(console, line)


def _split_table(check: DataCheck) -> Table:
    table = simple_table()
    for name, justify in (("split", "left"), ("images", "right"), ("unreadable", "right"), ("height x width", "left")):
        table.add_column(name, justify=justify, overflow="fold")
    table.add_column("modes", overflow="fold")
    table.add_column("formats", overflow="fold")
    for split in check.splits:
        bad = len(split.unreadable) + len(split.refused)
        table.add_row(
            split.name,
            f"{len(split.labels):,}",
            f"{bad:,}",
            _sizes(split.sizes),
            _counts(split.modes),
            _counts(split.formats),
        )
    return table


def _sizes(sizes: Counter[tuple[int, int]]) -> str:
    if not sizes:
        return "-"
    if len(sizes) == 1:
        ((height, width),) = sizes
        return f"{height} x {width}"
    heights, widths = ([size[axis] for size in sizes] for axis in (0, 1))
    return f"{min(heights)}-{max(heights)} x {min(widths)}-{max(widths)} ({len(sizes):,} sizes)"


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{plain(name)} {count:,}" for name, count in counts.most_common()) or "-"


def _class_table(check: DataCheck, max_classes: int) -> Table:
    table = simple_table()
    table.add_column("class", overflow="fold")
    for split in check.splits:
        table.add_column(split.name, justify="right")
    counts = _class_counts(check)
    for number in _largest_first(counts)[:max_classes]:
        table.add_row(
            Text(shortened(check.classes[number], NAME_LENGTH)),
            *(f"{split_counts[number]:,}" for split_counts in counts),
        )
    return table


def _class_counts(check: DataCheck) -> list[list[int]]:
    return [split.class_counts(len(check.classes)) for split in check.splits]


def _largest_first(counts: list[list[int]]) -> list[int]:
    return sorted(range(len(counts[0])), key=lambda number: -counts[0][number])


def _class_lines(check: DataCheck, max_classes: int) -> Iterator[str]:
    if not check.classes:
        return
    counts = _class_counts(check)
    train, order = counts[0], _largest_first(counts)
    rest = [train[number] for number in order[max_classes:]]
    if rest:
        yield f"Classes not shown: {len(rest):,}, with {_range(rest)} training images each"
    yield f"{len(train):,} classes with {_range(train)} training images each{_imbalance(train)}"


def _range(counts: Sequence[int]) -> str:
    least, most = min(counts), max(counts)
    return f"{most:,}" if least == most else f"{least:,} to {most:,}"


def _imbalance(counts: Sequence[int]) -> str:
    least, most = min(counts), max(counts)
    return f": the largest has {most / least:.3g} times as many as the smallest" if 0 < least < most else ""


def _duplicate_table(duplicates: Sequence[Duplicates]) -> Table:
    table = simple_table()
    table.add_column("equal images")
    table.add_column("images", justify="right")
    for item in duplicates:
        table.add_row(item.kind, f"{item.count:,}")
    return table


def _examples(check: DataCheck, examples: int) -> Iterator[str]:
    for item in check.duplicates:
        for example in item.examples:
            yield f"{item.kind}: {', '.join(f'{name} ({check.classes[label]})' for name, label in example)}"
    for split in check.splits:
        yield from (split.unreadable + split.refused)[:examples]


def main(arguments: Sequence[str] | None = None, prog: str = "python -m oekd_fast.check_data") -> int:
    """Run the command line and return the exit status: 0 if the data set can be trained on, otherwise 1.

    Args:
        arguments: the command line; that of the process by default.
        prog: the command, for usage and errors.
    """
    replace_unencodable_output()
    console, errors = RunConsole(), RunConsole(stderr=True)
    try:
        options = CheckDataOptions(**parse(CheckDataOptions, prog, arguments))
        with warnings_as_lines(errors):
            check = check_data(options)
        show(console, check, options)
        if check.problem is None:
            return 0
        print_line(errors, f"error: {check.problem}")
    except (ImportError, TypeError, ValueError, OSError) as error:
        print_line(errors, f"error: {error}")
    finally:
        finish_output(console, errors)
    return 1


if __name__ == "__main__":
    sys.exit(main())
