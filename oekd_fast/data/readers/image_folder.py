"""Reader of image folders: one folder per class, in one folder per split or without splits."""

from pathlib import Path

import numpy as np
import torch

from oekd_fast.data.assemble import SPLIT_NAMES, SourceSplits, check_same_classes, stored_names
from oekd_fast.data.dataset import DataError
from oekd_fast.data.readers.encoded import read_into_memory, read_lazily
from oekd_fast.data.readers.reading import ReadOptions, ReadSplit

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def read_image_folder(root: Path, options: ReadOptions) -> SourceSplits:
    """Read `<split>/<class>/**` or, without splits, `<class>/**`; classes are sorted by name.

    Raises:
        DataError: there is no training split, a class has no images, or the classes of the splits differ.
    """
    folders = {path.name: path for path in _subfolders(root) if path.name not in options.skip_splits}
    only_splits = set(folders) <= set(SPLIT_NAMES)
    # A class may be called "train": then its folder holds images, and the folders beside it are no splits.
    has_splits = only_splits or ("train" in folders and _subfolders(folders["train"]))
    if has_splits and "train" not in folders:
        raise DataError(f"{root}: expected a folder 'train', got {list(folders)}")
    stored = stored_names(folders) if has_splits else {"train": ""}
    files = {split: _class_files(root / folder) for split, folder in stored.items()}
    for split, files_of_classes in files.items():
        check_same_classes(files["train"].keys(), files_of_classes.keys(), stored[split])
    read = {split: _read_split(root / folder, files[split], options) for split, folder in stored.items()}
    return SourceSplits.of(read, files["train"])


def _class_files(folder: Path) -> dict[str, list[Path]]:
    classes = {path.name: _image_files(path) for path in _subfolders(folder)}
    if not classes:
        raise DataError(f"{folder}: expected one folder per class, got none")
    for name, files in classes.items():
        if not files:
            raise DataError(f"{folder / name}: expected image files of a class ({', '.join(IMAGE_SUFFIXES)}), got none")
    return classes


def _read_split(folder: Path, classes: dict[str, list[Path]], options: ReadOptions) -> ReadSplit:
    files = [path for members in classes.values() for path in members]
    labels = torch.from_numpy(np.repeat(np.arange(len(classes)), [len(members) for members in classes.values()]))
    if options.stream:
        return read_lazily(str(folder), lambda rows: [(str(files[row]), files[row]) for row in rows], labels, options)
    return read_into_memory(str(folder), ((str(path), path) for path in files), labels, options)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _image_files(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )
