"""Read tables of encoded images, from parquet files or the hub: choose the columns, then read them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oekd_fast.data.assemble import SourceSplits, check_same_classes, numbered_classes, stored_names
from oekd_fast.data.dataset import DataError
from oekd_fast.data.readers.encoded import Source, read_into_memory, read_lazily
from oekd_fast.data.readers.reading import ReadOptions, ReadSplit

# Rows read into Arrow memory at a time, which bounds the memory used beside the decoded array.
BATCH_ROWS = 1024
PREFERRED_LABELS = ("fine_label", "label")


@dataclass(frozen=True)
class Table:
    """Table of one split.

    Args:
        where: name of the table, for messages.
        features: type of each column, in the form of `datasets.Features.to_dict()`, which is also in the metadata of
            parquet files from the hub: `{"_type": "Image"}`, `{"_type": "ClassLabel", "names": [...]}`, and so on.
        batches: `batches(column)` iterates over Arrow tables or record batches, in the order of the rows.
        cells: `cells(column)` returns a function from row numbers to the values in these rows. A table with `cells` is
            streamed.
    """

    where: str
    features: Mapping[str, Any]
    batches: Callable[[str], Iterator[Any]]
    cells: Callable[[str], Callable[[Sequence[int]], list[Any]]] | None = None


def mapped_table(where: str, features: Mapping[str, Any], rows: Any, stream: bool) -> Table:
    """Return the table of a `datasets.Dataset`, whose cache is mapped into memory; `stream` gives it `cells`."""
    return Table(where, features, partial(_mapped_batches, rows), partial(_mapped_cells, rows) if stream else None)


def read_tables(tables: Mapping[str, Table], options: ReadOptions) -> SourceSplits:
    """Read tables, given by the names of their splits.

    Raises:
        DataError: a column is missing, a label is missing, or the classes of the splits differ.
    """
    stored = stored_names([name for name in tables if name not in options.skip_splits])
    columns = {
        split: _columns(tables[name], options.image_column, options.label_column) for split, name in stored.items()
    }
    classes = {split: tables[stored[split]].features[label].get("names") for split, (_, label) in columns.items()}
    for split, name in stored.items():
        check_same_classes(classes["train"] or (), classes[split] or (), name)
    read = {split: _read(tables[name], *columns[split], options) for split, name in stored.items()}
    return SourceSplits.of(
        read, classes["train"] or numbered_classes(read["train"].split.labels, tables["train"].where)
    )


def _columns(table: Table, image: str | None, label: str | None) -> tuple[str, str]:
    features = table.features
    images = [name for name in features if _type(features[name]) == "Image"]
    named = [name for name in features if _type(features[name]) == "ClassLabel"]
    numbers = [name for name in features if _type(features[name]) == "integer"]
    preferred = [name for name in PREFERRED_LABELS if name in (*named, *numbers)]
    return (
        _pick(table, "an image column", image, images),
        _pick(table, "a class label column", label, [*preferred, *named, *numbers]),
    )


def _pick(table: Table, what: str, wanted: str | None, candidates: list[str]) -> str:
    if wanted in candidates:
        return wanted
    if wanted is not None or not candidates:
        expected = what if wanted is None else f"{what} {wanted!r}"
        raise DataError(f"{table.where}: expected {expected}, got the columns {list(table.features)}")
    return candidates[0]


def _type(feature: Any) -> str | None:
    """Return "integer" for a column of integers, otherwise the name of the feature's type, or None if it has none."""
    if not isinstance(feature, Mapping):
        return None
    if feature.get("_type") == "Value" and feature["dtype"].startswith(("int", "uint")):
        return "integer"
    return feature.get("_type")


def _read(table: Table, image_column: str, label_column: str, options: ReadOptions) -> ReadSplit:
    labels = [np.empty(0, dtype=np.int64)]
    for batch in table.batches(label_column):
        column = batch.column(label_column)
        if column.null_count:
            raise DataError(f"{table.where}: expected a label in every row of column {label_column!r}, got empty cells")
        labels.append(column.to_numpy().astype(np.int64))
    labels = torch.from_numpy(np.concatenate(labels))
    if table.cells is not None:
        fetch = partial(_fetch, table, table.cells(image_column))
        return read_lazily(table.where, fetch, labels, options)
    cells = (cell for batch in table.batches(image_column) for cell in batch.column(image_column).to_pylist())
    sources = (_named(table, row, cell) for row, cell in enumerate(cells))
    return read_into_memory(table.where, sources, labels, options)


def _mapped_batches(rows: Any, column: str) -> Iterator[Any]:
    return _encoded(rows, column).iter(batch_size=BATCH_ROWS)


def _mapped_cells(rows: Any, column: str) -> Callable[[Sequence[int]], list[Any]]:
    encoded = _encoded(rows, column)
    return lambda numbers: encoded[list(numbers)].column(column).to_pylist()


def _encoded(rows: Any, column: str) -> Any:
    # In Arrow format images stay encoded; `datasets` would decode them one by one.
    return rows.select_columns(column).with_format("arrow")


def _fetch(table: Table, cells: Callable[[Sequence[int]], list[Any]], rows: Sequence[int]) -> list[Source]:
    return [_named(table, row, cell) for row, cell in zip(rows, cells(rows), strict=True)]


def _named(table: Table, row: int, cell: Any) -> Source:
    return f"in row {row} of {table.where}", _source(cell)


def _source(cell: Any) -> Path | BytesIO:
    """Return the file or bytes of an image; a missing image becomes empty bytes, which the decoder reports."""
    if isinstance(cell, Mapping):
        if not cell["bytes"] and cell.get("path"):
            return Path(cell["path"])
        cell = cell["bytes"]
    return BytesIO(cell or b"")
