"""Reader of data sets on the Hugging Face hub, through the `datasets` package and its cache."""

from oekd_fast.data.assemble import SourceSplits
from oekd_fast.data.dataset import DataError
from oekd_fast.data.readers.reading import ReadOptions, require
from oekd_fast.data.readers.table import mapped_table, read_tables


def read_hub(hub_id: str, config: str | None, options: ReadOptions) -> SourceSplits:
    """Download a data set, unless it is in the cache, and read it.

    Streamed images stay in the cache, which `datasets` maps into memory.

    Args:
        hub_id: "owner/name".
        config: configuration of the data set; None for its only or default one.
        options: how to read images.

    Raises:
        DataError: the data set cannot be loaded, has no training split, or is malformed.
    """
    datasets = require("datasets")
    try:
        splits = datasets.load_dataset(hub_id, config)
    except Exception as error:  # errors of the network, hub and builder have no common base class
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(
            f"cannot load {hub_id!r} from the Hugging Face hub ({reason}): check the name and the network, "
            "or use local files (data_dir for a known name, otherwise the path of a folder)"
        ) from error
    if "train" not in splits:
        raise DataError(f"{hub_id}: expected a split 'train', got {list(splits)}")
    tables = {
        name: mapped_table(f"{hub_id} ({name})", rows.features.to_dict(), rows, options.stream)
        for name, rows in splits.items()
    }
    return read_tables(tables, options)
