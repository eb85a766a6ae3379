"""Read tables of encoded images from parquet files, Arrow files or the hub."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from oekd_fast.data.assemble import SourceSplits, check_same_classes, numbered_classes
from oekd_fast.data.dataset import DataError
from oekd_fast.data.names import printable
from oekd_fast.data.readers.cells import CellReader
from oekd_fast.data.readers.columns import Chosen, Column, choose_columns, columns_of
from oekd_fast.data.readers.encoded import Source, read_into_memory, read_lazily
from oekd_fast.data.readers.labels import NamedLabels, read_numbers
from oekd_fast.data.readers.reading import ReadOptions, ReadSplit
from oekd_fast.data.readers.split_names import SplitChoice


@dataclass(frozen=True)
class Table:
    """Table of one split.

    Args:
        where: name of the table, for messages.
        schema: `pyarrow.Schema`; its metadata may hold the types of `datasets` under the key "huggingface".
        batches: `batches(column)` iterates over the column in record batches of this column alone, in the order of the
            rows.
        rows: number of rows that the files declare.
        reader: reads the cells of the image column.
        cells: `cells(column)` returns a function from row numbers to the values in these rows. A table with `cells` is
            streamed.
    """

    where: str
    schema: Any
    batches: Callable[[str], Iterator[Any]]
    rows: int
    reader: CellReader
    cells: Callable[[str], Callable[[Sequence[int]], list[Any]]] | None = None

    def arrays(self, column: str) -> Iterator[Any]:
        """Iterate over the Arrow arrays of a column."""
        for batch in self.batches(column):
            yield batch.column(0)

    def values(self, column: str) -> Iterator[Any]:
        """Iterate over the values of a column, one at a time: many cells of few bytes in the file may be large."""
        for array in self.arrays(column):
            for cell in array:
                yield cell.as_py()


def read_tables(where: str, tables: Mapping[str, Table], choice: SplitChoice, options: ReadOptions) -> SourceSplits:
    """Read tables.

    Args:
        where: name of the data set, for the notes.
        tables: tables by the stored names of their splits.
        choice: the splits to read.
        options: how to read images, and the names of the columns.

    Raises:
        DataError: the columns are in doubt, a label is missing or out of range, or the splits differ in their columns
            or classes.
    """
    chosen_tables = {split: tables[name] for split, name in choice.stored.items()}
    columns = {split: _columns(table) for split, table in chosen_tables.items()}
    train = chosen_tables["train"]
    chosen = choose_columns(train.where, columns["train"], train.values, options.image_column, options.label_column)
    for split, table in chosen_tables.items():
        _check_same_columns(table.where, columns[split], columns["train"], chosen)
        check_same_classes(chosen.label.classes or (), _named(columns[split], chosen.label).classes or (), split)
    labels, names = _labels(chosen_tables, chosen)
    classes = _printable_names(train.where, names)
    if not chosen.named and chosen.label.classes is None and 1 < len(labels["train"]) == len(classes):
        raise DataError(
            f"{train.where}: expected a class label column, got column {chosen.label.label} with another value in each "
            "row; label_column names the column"
        )
    read = {split: _read(table, chosen.image.name, labels[split], options) for split, table in chosen_tables.items()}
    notes = (choice.note(where), _note(where, columns["train"], chosen, len(classes)))
    return SourceSplits.of(read, classes, notes)


def _columns(table: Table) -> tuple[Column, ...]:
    try:
        return columns_of(table.schema)
    except DataError as error:
        raise DataError(f"{table.where}: {error}") from error


def _named(columns: Sequence[Column], wanted: Column) -> Column:
    return next(column for column in columns if column.name == wanted.name)


def _check_same_columns(where: str, columns: Sequence[Column], train: Sequence[Column], chosen: Chosen) -> None:
    """Raise DataError unless a split has the columns that were chosen in the training split, of the same kinds."""
    for wanted in (chosen.image, chosen.label):
        found = next((column for column in columns if column.name == wanted.name), None)
        same = found is not None and (found.readable_as_image if wanted is chosen.image else found.kind == wanted.kind)
        if not same:
            raise DataError(f"{where}: expected the column {wanted} of train, got {'none' if found is None else found}")


def _labels(tables: Mapping[str, Table], chosen: Chosen) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the labels of each split and the names of the classes."""
    column, train = chosen.label, tables["train"]
    if not column.is_integer:
        names = NamedLabels()
        labels = {"train": names.learn(train.where, column, train.values(column.name))}
        for split, table in tables.items():
            if split != "train":
                labels[split] = names.read(table.where, column, table.values(column.name))
        return labels, names.names
    declared = column.classes
    numbers = read_numbers(train.where, column, train.arrays(column.name), None if declared is None else len(declared))
    classes = declared or numbered_classes(numbers, train.where)
    others = {
        split: read_numbers(table.where, column, table.arrays(column.name), len(classes))
        for split, table in tables.items()
        if split != "train"
    }
    return {"train": numbers, **others}, classes


def _printable_names(where: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return names of classes in a form that can be printed and stored, as for image folders.

    Raises:
        DataError: two names are the same in that form.
    """
    classes = tuple(printable(name) for name in names)
    if len(set(classes)) < len(classes):
        same = next(name for name, count in Counter(classes).items() if count > 1)
        raise DataError(f"{where}: expected different names of classes, got two that are written {same!r}")
    return classes


def _note(where: str, columns: Sequence[Column], chosen: Chosen, num_classes: int) -> str:
    """Return a line that says which columns are read."""
    others = [column.label for column in columns if column not in (chosen.image, chosen.label)]
    rest = f"; other columns: {', '.join(others[:5])}{', ...' if len(others) > 5 else ''}" if others else ""
    return f"{where}: images from column {chosen.image}, {num_classes} classes from column {chosen.label}{rest}"


def _read(table: Table, image_column: str, labels: Tensor, options: ReadOptions) -> ReadSplit:
    _check_count(table, len(labels), "labels")
    if table.cells is not None:
        return read_lazily(table.where, partial(_fetch, table.reader, table.cells(image_column)), labels, options)
    return read_into_memory(table.where, _sources(table, image_column), labels, options)


def _sources(table: Table, column: str) -> Iterator[Source]:
    count = 0
    for cell in table.values(column):
        count += 1
        if count > table.rows:
            break
        yield table.reader.source(count - 1, cell)
    _check_count(table, count, "images")


def _check_count(table: Table, count: int, noun: str) -> None:
    """Raise DataError for a damaged file, whose columns have other lengths than it declares."""
    if count != table.rows:
        raise DataError(f"{table.where}: expected {table.rows:,} {noun}, the rows of the table, got {count:,}")


def _fetch(reader: CellReader, cells: Callable[[Sequence[int]], list[Any]], rows: Sequence[int]) -> list[Source]:
    return [reader.source(row, cell) for row, cell in zip(rows, cells(rows), strict=True)]
