"""Image folders: one folder a class, with or without a folder a split above them."""

from pathlib import Path

import numpy as np
import torch

from oekd_fast.data.assemble import SPLIT_NAMES, RawSplits, check_same_classes, split_roles
from oekd_fast.data.dataset import DataError
from oekd_fast.data.readers.encoded import read_lazily, read_now
from oekd_fast.data.readers.reading import Reading, ReadSplit

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def read_image_folder(root: Path, reading: Reading) -> RawSplits:
    """Read `<split>/<class>/**` or, without splits, `<class>/**`; classes are in the order of their names."""
    folders = {path.name: path for path in _subfolders(root) if path.name not in reading.without}
    only_splits = set(folders) <= set(SPLIT_NAMES)
    # A class may be called "train", but then it holds images, beside folders that are no splits.
    has_splits = only_splits or ("train" in folders and _subfolders(folders["train"]))
    if has_splits and "train" not in folders:
        raise DataError(f"{root} must have a folder 'train', got {list(folders)}")
    roles = split_roles(folders) if has_splits else {"train": ""}
    members = {role: _class_files(root / name) for role, name in roles.items()}
    for role, files in members.items():
        check_same_classes(members["train"].keys(), files.keys(), roles[role])
    read = {role: _read_split(root / roles[role], files, reading) for role, files in members.items()}
    return RawSplits.of(read, members["train"])


def _class_files(folder: Path) -> dict[str, list[Path]]:
    classes = {path.name: _image_files(path) for path in _subfolders(folder)}
    if not classes:
        raise DataError(f"{folder} holds no class folders")
    for name, files in classes.items():
        if not files:
            raise DataError(
                f"class folder {folder / name} holds no image file (looked for {', '.join(IMAGE_SUFFIXES)})"
            )
    return classes


def _read_split(folder: Path, classes: dict[str, list[Path]], reading: Reading) -> ReadSplit:
    files = [path for members in classes.values() for path in members]
    labels = torch.from_numpy(np.repeat(np.arange(len(classes)), [len(members) for members in classes.values()]))
    if reading.stream:
        return read_lazily(str(folder), lambda rows: [(str(files[row]), files[row]) for row in rows], labels, reading)
    return read_now(str(folder), ((str(path), path) for path in files), labels, reading)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _image_files(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )
