"""Scan folders of images: visible entries, links without loops, and what is left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from oekd_fast.data.error import DataError
from oekd_fast.data.names import printable

# Names that systems and archive programs add, in lower case; names that begin with a dot are hidden too.
_SYSTEM_NAMES = frozenset(
    ("__macosx", "__pycache__", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found")
    + ("thumbs.db", "ehthumbs.db", "desktop.ini")
)
SUFFIXES_SHOWN = 5

# Device and inode of a folder, which are the same for every path and link to it.
Identity = tuple[int, int]


def entries(folder: Path) -> list[os.DirEntry]:
    """Return the visible entries of `folder`, sorted by name.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            visible = [entry for entry in found if not is_hidden(entry.name)]
    except OSError as error:
        raise DataError(f"cannot read the folder {printable(folder)}: {error.strerror}") from error
    return sorted(visible, key=lambda entry: entry.name)


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is left out without a word: hidden ones, and those that systems add."""
    return name.startswith(".") or name.casefold() in _SYSTEM_NAMES


def is_folder(entry: os.DirEntry) -> bool:
    """Return whether an entry is a folder or a link to one; a link that leads to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def subfolders(folder: Path) -> list[Path]:
    """Return the visible folders in `folder` and links to folders, sorted by name."""
    return [folder / entry.name for entry in entries(folder) if is_folder(entry)]


def identity(folder: Path) -> Identity:
    """Return the identity of a folder; links to it have the same.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        status = os.stat(folder)
    except OSError as error:
        raise DataError(f"cannot read the folder {printable(folder)}: {error.strerror}") from error
    return status.st_dev, status.st_ino


def images_in(folder: Path, suffixes: Collection[str]) -> int:
    """Return the number of image files in `folder` itself."""
    return sum(_suffix(entry.name) in suffixes and not is_folder(entry) for entry in entries(folder))


def image_files(
    folder: Path, suffixes: Collection[str], above: Iterable[Identity] = (), left_out: Counter[str] | None = None
) -> list[Path]:
    """Return the image files in `folder` and all folders below, sorted by path.

    Links to files and folders are followed. A folder that several paths lead to is read once, by a path without links
    if there is one.

    Args:
        folder: where to begin.
        suffixes: suffixes of image files, in lower case.
        above: folders that are not read, so that a link to one of them does not bring in all that it holds.
        left_out: counts other files here, by suffix in lower case.

    Raises:
        DataError: a folder cannot be read.
    """
    found: list[Path] = []
    seen, pending = set(above), [folder]
    while pending:
        current = pending.pop()
        if (this := identity(current)) in seen:
            continue
        seen.add(this)
        for entry in entries(current):
            path = current / entry.name
            if is_folder(entry):
                # Links wait at the front until all folders without links are read.
                pending.insert(0 if entry.is_symlink() else len(pending), path)
            elif (suffix := _suffix(entry.name)) in suffixes:
                found.append(path)
            elif left_out is not None:
                left_out[suffix] += 1
    return sorted(found)


def note_on_left_out(root: Path, left_out: Counter[str], outside: int) -> str | None:
    """Return a line on the files that were left out; None without any.

    Args:
        root: the data set.
        left_out: number of files in class folders that are no images, by suffix.
        outside: number of images outside class folders.
    """
    parts = []
    if left_out:
        counts = [f"{count:,} {printable(suffix[:20]) or 'without'}" for suffix, count in left_out.most_common()]
        more = f" and {len(counts) - SUFFIXES_SHOWN} more suffixes" if len(counts) > SUFFIXES_SHOWN else ""
        shown = ", ".join(counts[:SUFFIXES_SHOWN])
        parts.append(f"{left_out.total():,} files that are no images by their suffix ({shown}{more})")
    if outside:
        parts.append(f"{outside:,} images outside class folders")
    return f"{printable(root)}: left out {' and '.join(parts)}" if parts else None


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
