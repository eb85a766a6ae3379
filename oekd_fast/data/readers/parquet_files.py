"""Find the parquet files of a data set: beside each other, or in the folders of a clone of a hub data set."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from oekd_fast.data.dataset import DataError
from oekd_fast.data.names import printable
from oekd_fast.data.readers.folder_scan import entries, is_folder
from oekd_fast.data.readers.split_names import quoted, split_role, split_roles

# Numbers after the name of a split: "train-00000-of-00002", "train_3", "train.0".
NUMBERS = re.compile(r"(?:[-_.]?\d+)?(?:-of-\d+)?(?:-[0-9a-f]{8,})?$")
# Older files of the hub have a hash after the numbers.
SHARD = re.compile(r"(?P<stem>.*)-(?P<index>\d+)-of-(?P<count>\d+)(?:-[0-9a-f]+)?")


@dataclass(frozen=True)
class ParquetFiles:
    """Parquet files of one config.

    Args:
        folder: folder that holds them.
        splits: the files by the stored name of their split, sorted.
        note: a line on parquet files that are not read, or None.
    """

    folder: Path
    splits: dict[str, list[Path]]
    note: str | None = None


def find_parquet(root: Path, config: str | None = None) -> ParquetFiles | None:
    """Find the parquet files in `root`, `root/data` or a folder of `root`; None without any.

    Files of a split are `<split>.parquet`, `<split>-*.parquet` or `<split>/*.parquet`. A single folder of unnamed files
    without other folders beside it is the training split.

    Args:
        root: the folder that was named.
        config: folder to take if there are several.

    Raises:
        DataError: there are several configs.
    """
    found = _configs(root)
    if not found:
        return None
    note = None
    if len(found) > 1:
        name = next((name for name in (config, "") if name in found), None)
        if name is None:
            names = sorted(found)
            example = printable(root / names[0])
            raise DataError(
                f"{printable(root)}: expected parquet files of one config, got {quoted(names)}; "
                f"name the folder of one, such as {example}"
            )
        others = quoted(sorted(other for other in found if other != name))
        note = f"{printable(root / name)}: the parquet files in the folders {others} beside it are not read"
        found = {name: found[name]}
    ((name, files),) = found.items()
    return ParquetFiles(root / name, _by_split(files), note)


def _configs(root: Path) -> dict[str, list[Path]]:
    """Return the parquet files by the folder of their config, relative to `root`."""
    found: dict[str, list[Path]] = defaultdict(list)
    direct, folders = _entries(root)
    # Tables that are not named after a split may describe the images of a folder, so they need to be alone.
    if direct and (not folders or any(split_roles(_names(direct)).values())):
        found[""] += direct
    for folder in folders:
        files, inner_folders = _entries(folder)
        if files:
            roles = set(split_roles(_names(files)).values()) - {None}
            is_split = _folder_role(folder) is not None and roles <= {_folder_role(folder)}
            found["" if is_split else folder.name] += files
        for inner in inner_folders:
            files = _entries(inner)[0] if _folder_role(inner) is not None else []
            if files:
                found[folder.name] += files
    return dict(found)


def _entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the parquet files and the folders in a folder, sorted; hidden ones are left out."""
    files, folders = [], []
    for entry in entries(folder):
        if is_folder(entry):
            folders.append(Path(entry.path))
        elif entry.name.endswith(".parquet"):
            files.append(Path(entry.path))
    return sorted(files), sorted(folders)


def _folder_role(folder: Path) -> str | None:
    return split_role(_folder_name(folder))


def _folder_name(folder: Path) -> str:
    """Return the name of the split that a folder may hold; Spark writes folders such as "train.parquet"."""
    return folder.name.removesuffix(".parquet")


def _split_name(path: Path) -> str:
    """Return the part of a file's name that names its split."""
    head = path.stem.split("-", 1)[0]
    return head if split_role(head) is not None else NUMBERS.sub("", path.stem)


def _names(files: Iterable[Path]) -> set[str]:
    return {_split_name(path) for path in files}


def _by_split(files: list[Path]) -> dict[str, list[Path]]:
    splits: dict[str, list[Path]] = defaultdict(list)
    named = any(split_roles(_names(files)).values())
    for path in files:
        if split_role(_split_name(path)) is None and _folder_role(path.parent) is not None:
            splits[_folder_name(path.parent)].append(path)
        else:
            splits[_split_name(path) if named else "train"].append(path)
    return dict(splits)


def check_complete(paths: Iterable[Path]) -> None:
    """Raise DataError if a file is missing among those that are numbered "0-of-n" to "n - 1-of-n"."""
    present: dict[tuple[Path, str, str], set[int]] = defaultdict(set)
    for path in paths:
        match = SHARD.fullmatch(path.stem)
        if match is not None:
            present[path.parent, match["stem"], match["count"]].add(int(match["index"]))
    for (folder, stem, count), indices in present.items():
        missing = next(_missing(indices, int(count)), None)
        if missing is not None:
            name = f"{stem}-{missing:0{len(count)}}-of-{count}.parquet"
            raise DataError(
                f"{printable(folder)}: expected {int(count)} files {printable(stem)}-*-of-{count}.parquet, "
                f"got {len(indices)}; {printable(name)} is missing"
            )


def _missing(indices: set[int], count: int) -> Iterator[int]:
    return (index for index in range(count) if index not in indices)
