"""Read the label column of a table: integers, or names that are numbered in sorted order."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oekd_fast.data.dataset import DataError
from oekd_fast.data.names import printable
from oekd_fast.data.readers.columns import Column

# Limits on the memory that labels may take.
MAX_ROWS = 200_000_000
MAX_CLASSES = 1_000_000
MAX_NAME_LENGTH = 1000


def check_rows(where: str, count: int) -> None:
    """Raise DataError if a table has more than `MAX_ROWS` rows."""
    if count > MAX_ROWS:
        raise DataError(f"{where}: expected at most {MAX_ROWS:,} rows, got {count:,}")


def read_numbers(where: str, column: Column, arrays: Iterable[Any], num_classes: int | None) -> Tensor:
    """Return a column of integers as class indices, int64 [N].

    Args:
        where: name of the table, for errors.
        column: the column.
        arrays: its values, as Arrow arrays.
        num_classes: number of classes; None accepts every integer >= 0.

    Raises:
        DataError: a label is missing or out of range; the message names its row.
    """
    parts, row = [np.empty(0, dtype=np.int64)], 0
    limit = np.iinfo(np.int64).max if num_classes is None else num_classes
    expected = "a label >= 0" if num_classes is None else f"labels in [0, {num_classes})"
    for part in arrays:
        part = part.dictionary_decode() if hasattr(part, "dictionary_decode") else part
        if part.null_count:
            _missing(where, column, row + part.is_null().to_numpy(zero_copy_only=False).argmax())
        numbers = part.to_numpy(zero_copy_only=False)
        wrong = (numbers < 0) | (numbers >= limit)
        if wrong.any():
            first = int(wrong.argmax())
            raise DataError(
                f"{where}: expected {expected}, got {numbers[first]} in row {row + first} of column {column.label}"
            )
        parts.append(numbers.astype(np.int64))
        row += len(numbers)
        check_rows(where, row)
    return torch.from_numpy(np.concatenate(parts))


class NamedLabels:
    """Mapping from the names in label columns to class indices, the same for all splits.

    The columns hold strings, bools or dictionaries. The names of the training split are numbered in sorted order.
    """

    def __init__(self) -> None:
        self._index: dict[str, int] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their indices."""
        return tuple(self._index)

    def learn(self, where: str, column: Column, values: Iterable[Any]) -> Tensor:
        """Number the names of the training split and return its class indices, int64 [N].

        Raises:
            DataError: a label is missing or too long, or there are more than `MAX_CLASSES` names.
        """
        found: dict[str, int] = {}
        codes = _codes(where, column, values, found, learn=True)
        order = sorted(found)
        self._index = {name: index for index, name in enumerate(order)}
        renumbered = np.array([self._index[name] for name in found], dtype=np.int64)
        return torch.from_numpy(renumbered[codes])

    def read(self, where: str, column: Column, values: Iterable[Any]) -> Tensor:
        """Return the class indices of another split, int64 [N].

        Raises:
            DataError: a label is missing, or is not a name of the training split.
        """
        return torch.from_numpy(_codes(where, column, values, self._index, learn=False))


def _codes(where: str, column: Column, values: Iterable[Any], index: dict[str, int], learn: bool) -> np.ndarray:
    codes = array("q")
    for row, value in enumerate(values):
        if value is None or value == "":
            _missing(where, column, row)
        name = value if isinstance(value, str) else str(value)
        code = index.get(name)
        if code is None:
            _check_name(where, column, row, name, index, learn)
            code = index[name] = len(index)
        codes.append(code)
    check_rows(where, len(codes))
    return np.array(codes, dtype=np.int64)


def _check_name(where: str, column: Column, row: int, name: str, index: dict[str, int], learn: bool) -> None:
    got = f"{printable(repr(name[:40]))} in row {row} of column {column.label}"
    if not learn:
        raise DataError(f"{where}: expected labels of train, got {got}")
    if len(name) > MAX_NAME_LENGTH:
        raise DataError(f"{where}: expected labels of at most {MAX_NAME_LENGTH} characters, got {len(name)}: {got}")
    if len(index) == MAX_CLASSES:
        raise DataError(f"{where}: expected at most {MAX_CLASSES:,} classes, got {got} besides")


def _missing(where: str, column: Column, row: int) -> None:
    raise DataError(f"{where}: expected a label in every row of column {column.label}, got none in row {row}")
