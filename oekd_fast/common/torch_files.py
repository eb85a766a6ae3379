"""Read files of `torch.save` without running code from them, in no more memory than their size."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Sequence
from typing import Any, BinaryIO

import torch

_ZIP_START = b"PK\x03\x04"


def load_torch(file: BinaryIO, map_location: str | torch.device = "cpu", also_allowed: Sequence[type] = ()) -> Any:
    """Return what `torch.save` wrote to `file`: tensors, numbers, text and containers of them.

    Args:
        file: open at any position, seekable.
        map_location: device of the tensors.
        also_allowed: classes without code of their own whose instances may be in the file too.

    Raises:
        ValueError: the file is damaged, holds other objects, or is an archive that unpacks to more than its size. The
            message is one line and does not name the file.
    """
    file.seek(0)
    try:
        if file.read(len(_ZIP_START)) == _ZIP_START:
            _check_archive(file)
        file.seek(0)
        with torch.serialization.safe_globals(list(also_allowed)):
            return torch.load(file, map_location=map_location, weights_only=True)
    except Exception as error:  # torch.load documents no set of exceptions, and its messages have many lines
        raise ValueError(_reason(error)) from error


def _check_archive(file: BinaryIO) -> None:
    """Raise ValueError unless every file of the archive is stored as it is; `torch.save` never compresses."""
    entries = zipfile.ZipFile(file).infolist()
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise ValueError("expected a file of torch.save, got a TorchScript archive")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("expected an archive of uncompressed files, got compressed ones")
    size, unpacked = file.seek(0, os.SEEK_END), sum(entry.file_size for entry in entries)
    if unpacked > size:
        raise ValueError(f"expected an archive that unpacks to at most its {size} bytes, got {unpacked} bytes")


def _reason(error: Exception) -> str:
    """Return what the message of `error` says about the file, in one line."""
    # torch.load puts advice in front, which is for those who call it themselves.
    text = str(error).rpartition("WeightsUnpickler error:")[2]
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        return f"it holds {found[1]}, which is not a tensor"
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return first if isinstance(error, ValueError) else f"{type(error).__name__}: {first}".removesuffix(": ")
