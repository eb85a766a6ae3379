"""Data sets of the Hugging Face hub, through the `datasets` package and its cache."""

from oekd_fast.data.assemble import RawSplits
from oekd_fast.data.dataset import DataError
from oekd_fast.data.readers.mapped import mapped_table
from oekd_fast.data.readers.optional import require
from oekd_fast.data.readers.reading import Reading
from oekd_fast.data.readers.table import read_tables


def read_hub(hub_id: str, config: str | None, reading: Reading) -> RawSplits:
    """Download, or take from the cache, and read.

    Streamed images stay in the cache, which `datasets` maps into memory.
    """
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
        name: mapped_table(f"{hub_id} ({name})", rows.features.to_dict(), rows, reading.stream)
        for name, rows in splits.items()
    }
    return read_tables(tables, reading)
