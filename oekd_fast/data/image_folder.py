"""Image folders: one folder a class, with or without a folder a split above them."""

from pathlib import Path

import numpy as np
import torch

from oekd_fast.data.assemble import SPLIT_NAMES, RawSplits, check_same_classes, split_roles
from oekd_fast.data.dataset import AnySplit, DataError, Split
from oekd_fast.data.decode import decode_images
from oekd_fast.data.encoded import EncodedImages
from oekd_fast.data.lazy import LazySplit

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def read_image_folder(root: Path, stream: bool = False) -> RawSplits:
    """Read `<split>/<class>/**` or, without splits, `<class>/**`; classes are in the order of their names.

    `stream` leaves the images in their files.
    """
    folders = {path.name: path for path in _subfolders(root)}
    only_splits = set(folders) <= set(SPLIT_NAMES)
    # A class may be called "train", but then it holds images, beside folders that are no splits.
    has_splits = only_splits or ("train" in folders and _subfolders(folders["train"]))
    if has_splits and "train" not in folders:
        raise DataError(f"{root} must have a folder 'train', got {list(folders)}")
    roles = split_roles(folders) if has_splits else {"train": ""}
    members = {role: _class_files(root / name) for role, name in roles.items()}
    for role, files in members.items():
        check_same_classes(members["train"].keys(), files.keys(), roles[role])
    splits = {role: _read_split(files, stream) for role, files in members.items()}
    return RawSplits(splits, tuple(members["train"]))


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


def _read_split(classes: dict[str, list[Path]], stream: bool) -> AnySplit:
    files = [path for members in classes.values() for path in members]
    labels = torch.from_numpy(np.repeat(np.arange(len(classes)), [len(members) for members in classes.values()]))
    if stream:
        images = EncodedImages(lambda rows: [(str(files[row]), files[row]) for row in rows], len(files))
        return LazySplit.of(images, labels)
    return Split(torch.from_numpy(decode_images(((str(path), path) for path in files), len(files))), labels)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _image_files(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )
