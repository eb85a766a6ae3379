"""Reader of folders that `Dataset.save_to_disk` and `DatasetDict.save_to_disk` of `datasets` wrote."""

from __future__ import annotations

import json
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

    The files are mapped into memory, so streamed images stay in them. A file that another process truncates meanwhile
    ends the process with SIGBUS; the files may be replaced or removed.

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
    shards = [(path, _mapped(path)) for path in paths]
    check_rows(where, rows := sum(shard.num_rows for _, shard in shards))
    cells = partial(_cells, shards) if options.stream else None
    return Table(where, shards[0][1].schema, partial(_batches, shards), rows, CellReader(where, folder), cells)


def _mapped(path: Path) -> Any:
    """Return the `pyarrow.Table` of an Arrow file, mapped into memory."""
    arrow = require("pyarrow")
    check_regular(path)
    with arrow_errors(path):
        return arrow.ipc.open_stream(arrow.memory_map(str(path))).read_all()


def _batches(shards: Sequence[tuple[Path, Any]], column: str) -> Iterator[Any]:
    for path, shard in shards:
        yield from _checked(path, shard, shards[0][1].schema, column).to_batches()


def _cells(shards: Sequence[tuple[Path, Any]], column: str) -> Callable[[Sequence[int]], list[Any]]:
    arrays = [_checked(path, shard, shards[0][1].schema, column).column(0) for path, shard in shards]
    starts = [0, *accumulate(len(array) for array in arrays)]

    def cells(rows: Sequence[int]) -> list[Any]:
        found = []
        for row in rows:
            shard = bisect_right(starts, row) - 1
            found.append(arrays[shard][row - starts[shard]].as_py())
        return found

    return cells


def _checked(path: Path, shard: Any, first: Any, column: str) -> Any:
    """Return a column as a table whose offsets were checked: pyarrow follows them without a check of its own."""
    check_same_kind(path, shard.schema, first, column)
    selected = shard.select([column])
    with arrow_errors(path):
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
