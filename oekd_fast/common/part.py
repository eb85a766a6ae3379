"""The part of a batch, or of a split, that one process works on."""

from __future__ import annotations

from typing import NamedTuple


class Part(NamedTuple):
    """Rows `first` to `first + count - 1` of `of` rows."""

    first: int
    count: int
    of: int

    @classmethod
    def whole(cls, count: int) -> Part:
        """Return all of `count` rows."""
        return cls(0, count, count)

    def piece(self, index: int, pieces: int) -> Part:
        """Return one of `pieces` parts of these rows, counted from 0; their sizes differ by one row at most."""
        first, end = (self.count * i // pieces for i in (index, index + 1))
        return Part(self.first + first, end - first, self.of)

    @property
    def rows(self) -> slice:
        """The rows as an index."""
        return slice(self.first, self.first + self.count)

    @property
    def share(self) -> float:
        """The share of these rows among all, in [0, 1]."""
        return self.count / self.of
