"""Reader of data sets on the Hugging Face hub, through the `datasets` package and its cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from oekd_fast.data.assemble import SourceSplits
from oekd_fast.data.dataset import DataError
from oekd_fast.data.names import printable
from oekd_fast.data.readers.cells import CellReader
from oekd_fast.data.readers.reading import ReadOptions, require
from oekd_fast.data.readers.split_names import choose_splits
from oekd_fast.data.readers.table import Table, read_tables

BATCH_ROWS = 256


def read_hub(hub_id: str, options: ReadOptions) -> SourceSplits:
    """Download a data set, unless it is in the cache, and read it.

    Streamed images stay in the cache, which `datasets` maps into memory.

    Args:
        hub_id: "owner/name".
        options: how to read images; its `config` is the configuration, None for the only or default one.

    Raises:
        DataError: the data set cannot be loaded, has no training split, or is malformed.
    """
    datasets = require("datasets")
    try:
        splits = datasets.load_dataset(hub_id, options.config)
    except Exception as error:  # errors of the network, hub and builder have no common base class
        reason = printable(f"{type(error).__name__}: {error}".splitlines()[0])
        raise DataError(
            f"cannot load {hub_id!r} from the Hugging Face hub ({reason}): check the name and the network, "
            "or use local files (data_dir for a known name, otherwise the path of a folder)"
        ) from error
    choice = choose_splits(hub_id, list(splits), options.skip_splits)
    # Images that are files of their own are cells with a path in the cache.
    config, hub = datasets.config, require("huggingface_hub.constants")
    caches = tuple(Path(folder) for folder in (config.HF_DATASETS_CACHE, config.HF_CACHE_HOME, hub.HF_HUB_CACHE))
    tables = {name: _table(f"{hub_id} ({name})", splits[name], caches, options) for name in choice.stored.values()}
    return read_tables(hub_id, tables, choice, options)


def _table(where: str, rows: Any, caches: tuple[Path, ...], options: ReadOptions) -> Table:
    return Table(
        where,
        rows.features.arrow_schema,
        partial(_batches, rows),
        len(rows),
        CellReader(where, caches=caches),
        partial(_cells, rows) if options.stream else None,
    )


def _batches(rows: Any, column: str) -> Iterator[Any]:
    for table in _encoded(rows, column).iter(batch_size=BATCH_ROWS):
        yield from table.to_batches()


def _cells(rows: Any, column: str) -> Callable[[Sequence[int]], list[Any]]:
    encoded = _encoded(rows, column)
    return lambda numbers: encoded[list(numbers)].column(column).to_pylist()


def _encoded(rows: Any, column: str) -> Any:
    # In Arrow format images stay encoded; `datasets` would decode them one by one.
    return rows.select_columns(column).with_format("arrow")
