"""Options of reading, a split that was read, and the import of packages that only some readers need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from oekd_fast.data.dataset import AnySplit, DataError

NAMES_SHOWN = 3


@dataclass(frozen=True)
class ReadOptions:
    """Options that are the same for every split of a data set.

    Args:
        image_column, label_column: columns of tables; None finds them by their types.
        config: configuration to read, of several on the hub or in a clone; None expects a single or default one.
        skip_splits: splits that are not read ("test").
        stream: leave images on disk until a batch needs them.
        size: crop images to their middle square and resize them to this many pixels a side. None keeps their size,
            which has to be the same for all.
        skip_corrupt: leave out images that cannot be decoded, instead of raising an error.
        keep_encoded: return encoded images as `EncodedSplit` without decoding them, to inspect them one by one.
    """

    image_column: str | None = None
    label_column: str | None = None
    config: str | None = None
    skip_splits: tuple[str, ...] = ()
    stream: bool = False
    size: int | None = None
    skip_corrupt: bool = False
    keep_encoded: bool = False


class ReadSplit(NamedTuple):
    """A split, and a note on the images that were left out of it, or None."""

    split: AnySplit
    note: str | None = None


def note_on_skipped(where: str, names: Sequence[str], count: int) -> str | None:
    """Return a note on the images `names` that were left out of the `count` images of `where`; None without any."""
    if not names:
        return None
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    shown = ", ".join(names[:NAMES_SHOWN])
    return f"{where}: left out {len(names)} of {count} images, which cannot be decoded: {shown}{more}"


def require(module: str) -> ModuleType:
    """Import `module` and return it.

    Raises:
        DataError: it is not installed; the message says how to install it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise DataError(f"this data needs the package {module!r}: pip install 'oekd_fast[train]'") from error
