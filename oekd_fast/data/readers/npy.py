"""Map a NumPy file into memory after its header is checked against the file; pickled objects are never loaded."""

import math
import os
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from oekd_fast.data.error import DataError
from oekd_fast.data.names import printable
from oekd_fast.data.readers.files import open_regular

# Version 3.0 differs in the names of fields only, which arrays of numbers do not have.
_HEADER_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def map_npy(path: Path) -> np.ndarray:
    """Return the array of a `.npy` file, mapped into memory and read-only.

    Raises:
        DataError: the file is missing, damaged, not a regular file or shorter than its header says, or holds objects.
    """
    try:
        return _map(path)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{printable(path)}: the file is missing") from error
    except Exception as error:  # NumPy's parser of headers raises many types on a damaged file
        reason = printable(str(error)) or type(error).__name__
        raise DataError(f"cannot read {printable(path)}: {reason}") from error


def _map(path: Path) -> np.ndarray:
    with open_regular(path) as file:
        version = npy.read_magic(file)
        if version not in _HEADER_READERS:
            raise DataError(f"{printable(path)}: expected a file of format 1.0 or 2.0, got {version[0]}.{version[1]}")
        shape, in_columns, dtype = _HEADER_READERS[version](file)
        if dtype.hasobject:
            raise DataError(f"{printable(path)}: expected numbers, got Python objects, which are never loaded")
        needed, present = math.prod(shape) * dtype.itemsize, os.fstat(file.fileno()).st_size - file.tell()
        if any(length < 0 for length in shape) or needed > present:
            raise DataError(
                f"{printable(path)}: expected {describe(dtype, shape)} after the header, got {present:,} bytes"
            )
        if needed == 0:  # nothing to map
            return np.empty(shape, dtype)
        return np.memmap(file, dtype, "r", file.tell(), shape, order="F" if in_columns else "C")


def describe(dtype: np.dtype, shape: tuple[int, ...]) -> str:
    """Return an array's type and shape for a message, such as "uint8 10 x 8 x 8"."""
    return f"{dtype} {' x '.join(str(size) for size in shape)}"
