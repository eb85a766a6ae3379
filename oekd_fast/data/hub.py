"""Data sets of the Hugging Face hub, through the `datasets` package and its cache."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from oekd_fast.data.assemble import RawSplits
from oekd_fast.data.dataset import DataError
from oekd_fast.data.optional import require
from oekd_fast.data.table import BATCH_ROWS, Table, read_tables


def read_hub(
    hub_id: str, config: str | None = None, image_column: str | None = None, label_column: str | None = None
) -> RawSplits:
    """Download, or take from the cache, and read; a column that is None is found by its type."""
    datasets = require("datasets")
    try:
        splits = datasets.load_dataset(hub_id, config)
    except Exception as error:  # network, hub and builder errors have no common type
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(
            f"cannot load {hub_id!r} from the Hugging Face hub ({reason}): check the name and the network, "
            "or give local files (data_dir with a known name, otherwise the path of a folder)"
        ) from error
    if "train" not in splits:
        raise DataError(f"{hub_id} must have a split 'train', got {list(splits)}")
    tables = {
        name: Table(f"{hub_id} ({name})", split.features.to_dict(), partial(_batches, split))
        for name, split in splits.items()
    }
    return read_tables(tables, image_column, label_column)


def _batches(split: Any, column: str) -> Iterator[Any]:
    # In Arrow format the images stay encoded; `datasets` would decode them one by one.
    return split.select_columns(column).with_format("arrow").iter(batch_size=BATCH_ROWS)
