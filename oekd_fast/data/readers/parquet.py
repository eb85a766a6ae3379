"""Reader of parquet files `<split>-*.parquet` with encoded images, the format of the Hugging Face hub."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from oekd_fast.data.assemble import SPLIT_NAMES, SourceSplits
from oekd_fast.data.dataset import DataError
from oekd_fast.data.readers.reading import ReadOptions, require
from oekd_fast.data.readers.table import BATCH_ROWS, Table, mapped_table, read_tables


def has_parquet(root: Path) -> bool:
    """Return whether `root` holds parquet files of a training split."""
    return bool(_shards(root, "train"))


def read_parquet(root: Path, options: ReadOptions) -> SourceSplits:
    """Read `<split>-*.parquet` or `<split>.parquet`.

    Reading into memory needs pyarrow only, which imports faster than `datasets` and writes no cache. Streaming needs
    `datasets` too, which copies the files to Arrow files in its cache, since parquet has no access to single rows.

    Raises:
        DataError: a file cannot be read, or the tables are malformed.
    """
    shards = {name: _shards(root, name) for name in SPLIT_NAMES if name not in options.skip_splits}
    read = _mapped_table if options.stream else _table
    tables = {name: read(f"{root} ({name})", files) for name, files in shards.items() if files}
    return read_tables(tables, options)


def _table(where: str, shards: list[Path]) -> Table:
    return Table(where, _features(shards[0]), partial(_batches, shards))


def _mapped_table(where: str, shards: list[Path]) -> Table:
    if not any(_count(shard) for shard in shards):  # `datasets` rejects files without rows
        return _table(where, shards)
    features, datasets = _features(shards[0]), require("datasets")
    try:
        rows = datasets.Dataset.from_parquet([str(shard) for shard in shards])
    except Exception as error:  # errors of the builder have no common base class
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(f"cannot copy {where} to the cache of `datasets` ({reason})") from error
    return mapped_table(where, features, rows, stream=True)


def _shards(root: Path, name: str) -> list[Path]:
    return sorted([*root.glob(f"{name}.parquet"), *root.glob(f"{name}-*.parquet")])


def _open(path: Path) -> Any:
    parquet = require("pyarrow.parquet")
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _count(shard: Path) -> int:
    with _open(shard) as file:
        return file.metadata.num_rows


def _features(shard: Path) -> dict[str, Any]:
    """Return the type of each column, from the metadata of `datasets` or else guessed from the Arrow type."""
    with _open(shard) as file:
        schema = file.schema_arrow
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    known = metadata.get("info", {}).get("features") or {}
    return {field.name: known.get(field.name) or _guess(field.type) for field in schema}


def _guess(arrow_type: Any) -> dict[str, Any]:
    types = require("pyarrow").types
    holds_bytes = types.is_struct(arrow_type) and arrow_type.get_field_index("bytes") >= 0
    if holds_bytes or types.is_binary(arrow_type) or types.is_large_binary(arrow_type):
        return {"_type": "Image"}
    return {"_type": "Value", "dtype": str(arrow_type)}


def _batches(shards: list[Path], column: str) -> Iterator[Any]:
    for shard in shards:
        with _open(shard) as file:
            yield from file.iter_batches(batch_size=BATCH_ROWS, columns=[column])
