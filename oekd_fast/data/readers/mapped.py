"""Tables that the `datasets` package maps from its cache into memory, so that any row is at hand."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from oekd_fast.data.readers.table import BATCH_ROWS, Table


def mapped_table(where: str, features: Mapping[str, Any], rows: Any, stream: bool) -> Table:
    """The table of `rows`, a `datasets.Dataset`, to read in order or, with `stream`, as needed."""
    return Table(where, features, partial(_batches, rows), partial(_cells, rows) if stream else None)


def _batches(rows: Any, column: str) -> Iterator[Any]:
    return _encoded(rows, column).iter(batch_size=BATCH_ROWS)


def _cells(rows: Any, column: str) -> Callable[[Sequence[int]], list[Any]]:
    encoded = _encoded(rows, column)
    return lambda numbers: encoded[list(numbers)].column(column).to_pylist()


def _encoded(rows: Any, column: str) -> Any:
    # In Arrow format the images stay encoded; `datasets` would decode them one by one.
    return rows.select_columns(column).with_format("arrow")
