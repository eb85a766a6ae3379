"""Reader of folders that `Dataset.save_to_disk` and `DatasetDict.save_to_disk` of `datasets` wrote."""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from oekd_fast.data.assemble import SourceSplits
from oekd_fast.data.dataset import DataError
from oekd_fast.data.names import printable
from oekd_fast.data.readers.arrow_errors import arrow_errors, check_regular
from oekd_fast.data.readers.cells import CellReader
from oekd_fast.data.readers.columns import check_same_kind
from oekd_fast.data.readers.files import open_regular
from oekd_fast.data.readers.labels import check_rows
from oekd_fast.data.readers.reading import ReadOptions, require
from oekd_fast.data.readers.split_names import choose_splits
from oekd_fast.data.readers.table import Table, read_tables

SPLITS_FILE, STATE_FILE = "dataset_dict.json", "state.json"
MAX_JSON_BYTES = 1 << 24
# Entries with which `datasets` 1.x saved the numbers of the rows that a data set consists of.
ROWS_SELECTED = ("_indices_data_files", "_indices_files")


def is_saved_to_disk(root: Path) -> bool:
    """Return whether `root` is a folder that `save_to_disk` wrote."""
    return (root / SPLITS_FILE).is_file() or (root / STATE_FILE).is_file()


def read_saved_to_disk(root: Path, options: ReadOptions) -> SourceSplits:
    """Read the Arrow files with pyarrow alone; a folder without splits is the training split.

    The files are mapped into memory, so streamed images stay in them. A file that another process has truncated is an
    error; one that is truncated in the very moment of reading ends the process with SIGBUS.

    Raises:
        DataError: a file is missing, damaged or outside the folder, or the tables are malformed.
    """
    where = printable(root)
    if (root / SPLITS_FILE).is_file():
        folders = {name: root / name for name in _names(root / SPLITS_FILE, "splits")}
    else:
        folders = {"train": root}
    choice = choose_splits(where, list(folders), options.skip_splits)
    tables = {name: _table(f"{where} ({printable(name)})", folders[name], options) for name in choice.stored.values()}
    return read_tables(where, tables, choice, options)


def _table(where: str, folder: Path, options: ReadOptions) -> Table:
    paths = [folder / name for name in _names(folder / STATE_FILE, "_data_files")]
    if not paths:
        raise DataError(f"{printable(folder / STATE_FILE)}: expected the names of Arrow files, got none")
    shards = [_Shard(path) for path in paths]
    check_rows(where, rows := sum(shard.table.num_rows for shard in shards))
    cells = partial(_cells, shards) if options.stream else None
    return Table(where, shards[0].table.schema, partial(_batches, shards), rows, CellReader(where, folder), cells)


class _Shard:
    """An Arrow file.

    Attributes:
        path: the file.
        table: its `pyarrow.Table`, mapped into memory.
    """

    def __init__(self, path: Path) -> None:
        arrow = require("pyarrow")
        self.path = path
        check_regular(path)
        with arrow_errors(path):
            self._status = path.stat()
            self.table = arrow.ipc.open_stream(arrow.memory_map(str(path))).read_all()

    def check_size(self) -> None:
        """Raise DataError if the file is shorter now, where reading a missing page would end the process.

        A file that was removed or replaced is no error, because the map keeps it.
        """
        try:
            now = self.path.stat()
        except OSError:
            return
        missing = self._status.st_size - now.st_size
        if missing > 0 and os.path.samestat(now, self._status):
            raise DataError(
                f"{printable(self.path)}: the file was truncated while in use; {missing:,} bytes are missing"
            )


def _batches(shards: Sequence[_Shard], column: str) -> Iterator[Any]:
    for shard in shards:
        for batch in _checked(shard, shards[0].table.schema, column).to_batches():
            shard.check_size()
            yield batch


def _cells(shards: Sequence[_Shard], column: str) -> Callable[[Sequence[int]], list[Any]]:
    arrays = [_checked(shard, shards[0].table.schema, column).column(0) for shard in shards]
    starts = [0, *accumulate(len(array) for array in arrays)]

    def cells(rows: Sequence[int]) -> list[Any]:
        found = []
        for row in rows:
            number = bisect_right(starts, row) - 1
            shards[number].check_size()
            found.append(arrays[number][row - starts[number]].as_py())
        return found

    return cells


def _checked(shard: _Shard, first: Any, column: str) -> Any:
    """Return a column as a table whose offsets were checked: pyarrow follows them without a check of its own."""
    check_same_kind(shard.path, shard.table.schema, first, column)
    selected = shard.table.select([column])
    shard.check_size()
    with arrow_errors(shard.path):
        selected.validate(full=True)
    return selected


def _names(path: Path, key: str) -> list[str]:
    """Return the names of files or folders that a JSON file lists; they have to lie in the folder of the file.

    Raises:
        DataError: the file is missing or malformed, a name leads elsewhere, or the rows are a selection.
    """
    try:
        with open_regular(path, MAX_JSON_BYTES) as file:
            content = json.loads(file.read())
        names = [item["filename"] if isinstance(item, dict) else item for item in content[key]]
        selected = any(content.get(indices) for indices in ROWS_SELECTED)
    except OSError as error:
        raise DataError(f"cannot read {printable(path)}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"cannot read {printable(path)}: expected JSON with a list {key!r}") from error
    if selected:
        raise DataError(f"{printable(path)}: expected all rows, got a selection; save the data with datasets >= 2")
    for name in names:
        if not isinstance(name, str) or name in ("", ".", "..") or any(mark in name for mark in "/\\\0"):
            raise DataError(
                f"{printable(path)}: expected names without folders in {key!r}, got {printable(repr(name)[:100])}"
            )
    return names
