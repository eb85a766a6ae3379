"""Tables of encoded images, from parquet files or the hub: which columns to take, and how to read them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oekd_fast.data.assemble import RawSplits, check_same_classes, numbered_classes, split_roles
from oekd_fast.data.dataset import DataError
from oekd_fast.data.readers.encoded import Source, read_lazily, read_now
from oekd_fast.data.readers.reading import Reading, ReadSplit

# Rows read into Arrow memory at a time; bounds what is held beside the decoded array.
BATCH_ROWS = 1024
PREFERRED_LABELS = ("fine_label", "label")


@dataclass(frozen=True)
class Table:
    """One split: a name for messages, the type of each column, and a reader of one column.

    `features` is the plain form of Hugging Face `Features` (`Features.to_dict()`, which their parquet files
    carry too): column -> `{"_type": "Image"}`, `{"_type": "ClassLabel", "names": [...]}`, ...
    `batches(column)` gives Arrow tables or record batches in the order of the rows. A table that has `cells`
    is streamed from: `cells(column)` gives a reader of any rows by their numbers.
    """

    where: str
    features: Mapping[str, Any]
    batches: Callable[[str], Iterator[Any]]
    cells: Callable[[str], Callable[[Sequence[int]], list[Any]]] | None = None


def read_tables(tables: Mapping[str, Table], reading: Reading) -> RawSplits:
    """Read tables by split name."""
    roles = split_roles([name for name in tables if name not in reading.without])
    columns = {role: _columns(tables[name], reading.image_column, reading.label_column) for role, name in roles.items()}
    names = {role: tables[roles[role]].features[label].get("names") for role, (_, label) in columns.items()}
    for role, split_name in roles.items():
        check_same_classes(names["train"] or (), names[role] or (), split_name)
    read = {role: _read(tables[name], *columns[role], reading) for role, name in roles.items()}
    classes = names["train"] or numbered_classes(read["train"].split.labels, tables["train"].where)
    return RawSplits.of(read, classes)


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
        raise DataError(f"{table.where} must have {expected}, got the columns {list(table.features)}")
    return candidates[0]


def _type(feature: Any) -> str | None:
    """ "Image", "ClassLabel", "integer", or whatever else the feature is called."""
    if not isinstance(feature, Mapping):
        return None
    if feature.get("_type") == "Value" and feature["dtype"].startswith(("int", "uint")):
        return "integer"
    return feature.get("_type")


def _read(table: Table, image_column: str, label_column: str, reading: Reading) -> ReadSplit:
    labels = [np.empty(0, dtype=np.int64)]
    for batch in table.batches(label_column):
        column = batch.column(label_column)
        if column.null_count:
            raise DataError(f"{table.where}: column {label_column!r} must have a label in every row")
        labels.append(column.to_numpy().astype(np.int64))
    labels = torch.from_numpy(np.concatenate(labels))
    if table.cells is not None:
        fetch = partial(_fetch, table, table.cells(image_column))
        return read_lazily(table.where, fetch, labels, reading)
    cells = (cell for batch in table.batches(image_column) for cell in batch.column(image_column).to_pylist())
    sources = (_named(table, row, cell) for row, cell in enumerate(cells))
    return read_now(table.where, sources, labels, reading)


def _fetch(table: Table, cells: Callable[[Sequence[int]], list[Any]], rows: Sequence[int]) -> list[Source]:
    return [_named(table, row, cell) for row, cell in zip(rows, cells(rows), strict=True)]


def _named(table: Table, row: int, cell: Any) -> Source:
    return f"in row {row} of {table.where}", _source(cell)


def _source(cell: Any) -> Path | BytesIO:
    """File or bytes of one image; an absent image becomes empty bytes, which the decoder reports."""
    if isinstance(cell, Mapping):
        if not cell["bytes"] and cell.get("path"):
            return Path(cell["path"])
        cell = cell["bytes"]
    return BytesIO(cell or b"")
