"""Data sets of the Hugging Face hub, through the `datasets` package and its cache."""

from oekd_fast.data.assemble import RawSplits
from oekd_fast.data.dataset import DataError
from oekd_fast.data.mapped import mapped_table
from oekd_fast.data.optional import require
from oekd_fast.data.table import read_tables


def read_hub(
    hub_id: str,
    config: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    stream: bool = False,
) -> RawSplits:
    """Download, or take from the cache, and read; a column that is None is found by its type.

    `stream` leaves the images in the cache, which `datasets` maps into memory.
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
        name: mapped_table(f"{hub_id} ({name})", rows.features.to_dict(), rows, stream) for name, rows in splits.items()
    }
    return read_tables(tables, image_column, label_column)
