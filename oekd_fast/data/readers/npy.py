"""Read NumPy files after their header is checked against the file; pickled objects are never loaded.

Files are read, not mapped into memory: another process may truncate them meanwhile, and reading a mapped page that the
file no longer has ends the process with SIGBUS.
"""

import math
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.lib import format as npy

from oekd_fast.data.error import DataError
from oekd_fast.data.memory import available_memory
from oekd_fast.data.names import printable
from oekd_fast.data.readers.files import open_regular

# Version 3.0 differs in the names of fields only, which arrays of numbers do not have.
_HEADER_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}

_HAS_PREADV = hasattr(os, "preadv")  # reads at a position in one call; Windows lacks it


class NpyFile:
    """The array of a `.npy` file, whose rows are read when they are asked for. The file stays open.

    Args:
        path: the file.

    Attributes:
        shape, dtype: those of the array.

    Raises:
        DataError: the file is missing, damaged, not a regular file or shorter than its header says, or holds objects.
    """

    def __init__(self, path: Path) -> None:
        self._where, self._lock = printable(path), Lock()
        with _naming(path):
            self._file = open_regular(path)
            weakref.finalize(self, self._file.close)
            self.shape, self._in_columns, self.dtype = self._header()
        self._start, self._descriptor = self._file.tell(), self._file.fileno()
        self._columns: np.ndarray | None = None

    def read_all(self) -> np.ndarray:
        """Return the whole array.

        Raises:
            DataError: the file has been truncated.
        """
        array = np.empty(self.shape, self.dtype, order="F" if self._in_columns else "C")
        if array.size:
            rows = array.T if self._in_columns else array
            self._fill(memoryview(rows.reshape(-1).view(np.uint8)), self._start)
        return array

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows of the first dimension at `rows` (int64 [B]), in this order.

        A file in the order of columns, whose rows are scattered, is read into memory at the first call.

        Raises:
            DataError: the file has been truncated, or is in the order of columns and does not fit in memory.
        """
        if self._in_columns:
            return self._in_memory()[rows]
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        if found.size == 0:
            return found
        view, wanted, first = memoryview(found.reshape(-1).view(np.uint8)), rows.tolist(), 0
        length = len(view) // len(wanted)
        for last in range(1, len(wanted) + 1):
            if last == len(wanted) or wanted[last] != wanted[last - 1] + 1:
                # Rows that follow each other in the file are read together.
                self._fill(view[first * length : last * length], self._start + wanted[first] * length)
                first = last
        return found

    def _in_memory(self) -> np.ndarray:
        if self._columns is None:
            needed, available = math.prod(self.shape) * self.dtype.itemsize, available_memory()
            if available is not None and needed > available:
                raise DataError(
                    f"{self._where}: expected an array in the order of rows, as numpy.ascontiguousarray returns it, "
                    f"got one in the order of columns, whose {needed:,} bytes do not fit in memory"
                )
            self._columns = self.read_all()
        return self._columns

    def _fill(self, view: memoryview, position: int) -> None:
        """Read all bytes of `view` from a position in the file on."""
        try:
            count = self._read_at(view, position)
            while count < len(view):
                more = self._read_at(view[count:], position + count)
                if more == 0:
                    missing = len(view) - count
                    raise DataError(
                        f"{self._where}: the file was truncated while in use; {missing:,} bytes are missing"
                    )
                count += more
        except OSError as error:
            raise DataError(f"cannot read {self._where}: {error.strerror}") from error

    def _read_at(self, view: memoryview, position: int) -> int:
        if _HAS_PREADV:
            return os.preadv(self._descriptor, (view,), position)
        with self._lock:
            unbuffered = self._file.raw
            unbuffered.seek(position)
            return unbuffered.readinto(view)

    def _header(self) -> tuple[tuple[int, ...], bool, np.dtype]:
        file = self._file
        version = npy.read_magic(file)
        if version not in _HEADER_READERS:
            raise DataError(f"{self._where}: expected a file of format 1.0 or 2.0, got {version[0]}.{version[1]}")
        shape, in_columns, dtype = _HEADER_READERS[version](file)
        if dtype.hasobject:
            raise DataError(f"{self._where}: expected numbers, got Python objects, which are never loaded")
        needed, present = math.prod(shape) * dtype.itemsize, os.fstat(file.fileno()).st_size - file.tell()
        if any(length < 0 for length in shape) or needed > present:
            raise DataError(f"{self._where}: expected {describe(dtype, shape)} after the header, got {present:,} bytes")
        if needed == 0:
            np.empty(shape, dtype)  # raises if a dimension is too large for NumPy
        return shape, in_columns, dtype


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Raise what NumPy raises for a damaged file as a DataError of one line that names the file."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{printable(path)}: the file is missing") from error
    except Exception as error:  # NumPy's parser of headers raises many types on a damaged file
        reason = printable(str(error)) or type(error).__name__
        raise DataError(f"cannot read {printable(path)}: {reason}") from error


def describe(dtype: np.dtype, shape: tuple[int, ...]) -> str:
    """Return an array's type and shape for a message, such as "uint8 10 x 8 x 8"."""
    return f"{dtype} {' x '.join(str(size) for size in shape)}"
