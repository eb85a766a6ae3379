"""Reader of parquet files with encoded images, the format of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from oekd_fast.data.assemble import SourceSplits
from oekd_fast.data.dataset import DataError
from oekd_fast.data.names import printable
from oekd_fast.data.readers.arrow_errors import arrow_errors, check_regular
from oekd_fast.data.readers.cells import CellReader
from oekd_fast.data.readers.columns import check_same_kind
from oekd_fast.data.readers.labels import check_rows
from oekd_fast.data.readers.parquet_files import check_complete, find_parquet
from oekd_fast.data.readers.reading import ReadOptions, require
from oekd_fast.data.readers.split_names import choose_splits
from oekd_fast.data.readers.table import Table, read_tables

# Rows and bytes read into Arrow memory at a time, which bound the memory used beside the decoded array.
BATCH_ROWS, LEAST_ROWS = 1024, 4
BATCH_BYTES = 1 << 28


def has_parquet(root: Path, nested: bool = True) -> bool:
    """Return whether `root`, or with `nested` a folder in it, holds the parquet files of a data set."""
    if not root.is_dir():
        return False
    try:
        files = find_parquet(root)
    except DataError:  # several configs, which the reader reports
        return nested
    return files is not None and (nested or files.folder == root)


def read_parquet(root: Path, options: ReadOptions) -> SourceSplits:
    """Read the parquet files that `find_parquet` finds.

    Reading into memory needs pyarrow only, which imports faster than `datasets` and writes no cache. Streaming needs
    `datasets` too, which copies the images to Arrow files in its cache, since parquet has no access to single rows.

    Raises:
        DataError: a file cannot be read, or the tables are malformed.
    """
    files = find_parquet(root, options.config)
    if files is None:
        raise DataError(f"{printable(root)}: expected parquet files, got none")
    where = printable(files.folder)
    choice = choose_splits(where, list(files.splits), options.skip_splits)
    tables = {
        name: _table(f"{where} ({printable(name)})", files.splits[name], options.stream)
        for name in choice.stored.values()
    }
    source = read_tables(where, tables, choice, options)
    return source if files.note is None else replace(source, notes=(files.note, *source.notes))


def _table(where: str, shards: list[Path], stream: bool) -> Table:
    check_complete(shards)
    schema, rows = None, 0
    for shard in shards:
        with _opened(shard) as file:
            shard_schema, count = file.schema_arrow, file.metadata.num_rows
        check_rows(where, rows := rows + count)
        schema = shard_schema if schema is None else schema
    # `datasets` rejects files without rows.
    cells = partial(_cached_cells, where, shards, schema, rows) if stream and rows else None
    return Table(where, schema, partial(_batches, shards, schema), rows, CellReader(where, shards[0].parent), cells)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    parquet = require("pyarrow.parquet")
    check_regular(path)
    with arrow_errors(path):
        file = parquet.ParquetFile(path, page_checksum_verification=True)
    with file:
        yield file


def _batches(shards: list[Path], first: Any, column: str) -> Iterator[Any]:
    for shard in shards:
        with _opened(shard) as file, arrow_errors(shard):
            check_same_kind(shard, file.schema_arrow, first, column)
            yield from file.iter_batches(batch_size=_batch_rows(file.metadata), columns=[column])


def _batch_rows(metadata: Any) -> int:
    """Return how many rows are read at a time, so that they take about `BATCH_BYTES` at most.

    A value in a dictionary may be that of many rows, so each row may be as large as its whole row group. Sizes of
    single columns would be closer, but pyarrow aborts the process when it reads damaged metadata of a column.
    """
    sizes = (metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    return max(LEAST_ROWS, min(BATCH_ROWS, BATCH_BYTES // max(1, max(sizes, default=1))))


def _cached_cells(
    where: str, shards: list[Path], first: Any, count: int, column: str
) -> Callable[[Sequence[int]], list[Any]]:
    for shard in shards:
        with _opened(shard) as file:
            check_same_kind(shard, file.schema_arrow, first, column)
    datasets = require("datasets")
    try:
        rows = datasets.Dataset.from_parquet([str(shard) for shard in shards], columns=[column])
    except Exception as error:  # errors of the builder have no common base class
        reason = printable(f"{type(error).__name__}: {error}".splitlines()[0])
        raise DataError(f"cannot copy {where} to the cache of `datasets` ({reason})") from error
    if len(rows) != count:
        raise DataError(f"{where}: expected {count:,} images, the rows of the table, got {len(rows):,}")
    # In Arrow format images stay encoded; `datasets` would decode them one by one.
    rows = rows.with_format("arrow")
    return lambda numbers: rows[list(numbers)].column(column).to_pylist()
