"""Layout of a folder of images: which folders are splits, and which are classes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from oekd_fast.data.error import DataError
from oekd_fast.data.names import printable
from oekd_fast.data.readers.folder_scan import Identity, identity, image_files, subfolders
from oekd_fast.data.readers.formats import image_suffixes
from oekd_fast.data.readers.split_names import SplitChoice, choose_splits, quoted, split_roles


@dataclass(frozen=True)
class FolderLayout:
    """Folders that hold one folder for each class.

    Args:
        splits: the folder of "train" and, where available, of "validation" and "test".
        note: a line on names that do not speak for themselves and on folders that are ignored, or None.
    """

    splits: Mapping[str, Path]
    note: str | None = None


def find_layout(root: Path, skip_splits: Collection[str] = ()) -> FolderLayout:
    """Find the splits, or else the classes, in `root`.

    Folders whose names mean splits are splits if all folders have such names, or if the folder of the training split
    holds folders. Otherwise all folders are classes. A single folder that holds all others is entered.

    Args:
        root: the data set.
        skip_splits: roles of splits that are not read.

    Raises:
        DataError: there is no training split, two folders have the same role, or folders may be splits as well as
            classes.
    """
    inner = _entered(root)
    names = [path.name for path in subfolders(inner)]
    roles = split_roles(names)
    splits = [name for name in names if roles[name] is not None]
    others = [name for name in names if roles[name] is None]
    if not splits:
        return _classes(root, inner, [])
    training = [inner / name for name in splits if roles[name] == "train"]
    if others and not any(subfolders(folder) for folder in training):
        _refuse_split_among_classes(inner, splits, names)
        return _classes(root, inner, splits)
    if others:
        _refuse_classes_among_splits(inner, training, splits, others)
    choice = choose_splits(printable(inner), names, skip_splits)
    folders = {role: _entered(inner / name) for role, name in choice.stored.items()}
    shown = {role: folder.relative_to(root).as_posix() for role, folder in folders.items()}
    return FolderLayout(folders, SplitChoice(shown, choice.ignored).note(printable(root)))


def _entered(folder: Path) -> Path:
    """Return `folder`, or the folder inside that holds all others, as when an archive holds a single folder."""
    seen: set[Identity] = set()
    while (this := identity(folder)) not in seen:
        seen.add(this)
        inside = subfolders(folder)
        if len(inside) != 1:
            break
        below = split_roles([path.name for path in subfolders(inside[0])])
        named_as_split = split_roles([inside[0].name])[inside[0].name] is not None
        holds_splits = "train" in below.values() and None not in below.values()
        if not below or (named_as_split and not holds_splits):
            break
        folder = inside[0]
    return folder


def _classes(root: Path, inner: Path, named_as_splits: list[str]) -> FolderLayout:
    parts = []
    if inner != root:
        parts.append(f"classes from {quoted([inner.relative_to(root).as_posix()])}")
    if named_as_splits:
        parts.append(f"classes, not splits: {quoted(named_as_splits)}")
    return FolderLayout({"train": inner}, f"{printable(root)}: {'; '.join(parts)}" if parts else None)


def _refuse_split_among_classes(root: Path, splits: list[str], names: list[str]) -> None:
    """Raise DataError if a folder with the name of a split holds folders with the names of classes beside it."""
    classes = {name.casefold() for name in names}
    for split in splits:
        both = [path.name for path in subfolders(root / split) if path.name.casefold() in classes]
        if both:
            raise DataError(
                f"{printable(root)}: expected split folders or class folders, got {quoted([split])} with the folders "
                f"{quoted(both)} beside {quoted(both)}; move the training images to a folder 'train'"
            )


def _refuse_classes_among_splits(root: Path, training: list[Path], splits: list[str], others: list[str]) -> None:
    """Raise DataError if folders beside splits may be classes: those of train, or any if train is the only split."""
    suffixes = image_suffixes()
    classes = {path.name.casefold() for folder in training for path in subfolders(folder)}
    unclear = [name for name in others if len(splits) == 1 or name.casefold() in classes]
    unclear = [name for name in unclear if image_files(root / name, suffixes)]
    if unclear:
        raise DataError(
            f"{printable(root)}: expected split folders or class folders, got {quoted(splits)} beside "
            f"{quoted(unclear)}, which hold images too; move what is not a split elsewhere"
        )
