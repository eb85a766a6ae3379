"""How a source is to read its images, and what it read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from oekd_fast.data.dataset import AnySplit

NAMES_SHOWN = 3


@dataclass(frozen=True)
class Reading:
    """The same for every split of a data set.

    image_column, label_column: of tables; None: found by their types.
    without: names of splits that are not read.
    stream: leave images where they are until they are needed.
    size: bring images to this many pixels a side; None: they have one size, which is kept.
    skip_corrupt: leave images out that cannot be decoded; otherwise they are errors.
    """

    image_column: str | None = None
    label_column: str | None = None
    without: tuple[str, ...] = ()
    stream: bool = False
    size: int | None = None
    skip_corrupt: bool = False


class ReadSplit(NamedTuple):
    """A split, and a line on what was left out of it, None if nothing was."""

    split: AnySplit
    note: str | None = None


def left_out(where: str, names: Sequence[str], count: int) -> str | None:
    """The line on the images `names`, of `count`."""
    if not names:
        return None
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    shown = ", ".join(names[:NAMES_SHOWN])
    return f"{where}: left out {len(names)} of {count} images, which cannot be decoded: {shown}{more}"
