"""Reader of image folders: one folder per class, in one folder per split or without splits."""

from collections import Counter
from pathlib import Path

import numpy as np
import torch

from oekd_fast.data.assemble import SourceSplits, check_same_classes
from oekd_fast.data.error import DataError
from oekd_fast.data.names import printable
from oekd_fast.data.readers.encoded import read_into_memory, read_lazily
from oekd_fast.data.readers.folder_layout import find_layout
from oekd_fast.data.readers.folder_scan import identity, image_files, images_in, note_on_left_out, subfolders
from oekd_fast.data.readers.formats import image_suffixes
from oekd_fast.data.readers.reading import ReadOptions, ReadSplit


def read_image_folder(root: Path, options: ReadOptions) -> SourceSplits:
    """Read `<split>/<class>/**` or, without splits, `<class>/**`; classes are sorted by the names of their folders.

    Hidden files and folders are not read. Links are followed.

    Raises:
        DataError: there is no training split, a class has no images, the classes of the splits differ, or the layout
            is ambiguous (see `find_layout`).
    """
    layout = find_layout(root, options.skip_splits)
    suffixes, left_out = image_suffixes(), Counter()
    files = {split: _class_files(root, folder, suffixes, left_out) for split, folder in layout.splits.items()}
    for split, folder in layout.splits.items():
        check_same_classes(files["train"].keys(), files[split].keys(), printable(folder.name))
    outside = sum(images_in(folder, suffixes) for folder in {root, *layout.splits.values()})
    read = {split: _read_split(folder, files[split], options) for split, folder in layout.splits.items()}
    notes = (layout.note, note_on_left_out(root, left_out, outside))
    return SourceSplits.of(read, _class_names(layout.splits["train"], files["train"]), notes)


def _class_files(root: Path, folder: Path, suffixes: tuple[str, ...], left_out: Counter[str]) -> dict[str, list[Path]]:
    above = (identity(root), identity(folder))
    classes = {path.name: image_files(path, suffixes, above, left_out) for path in subfolders(folder)}
    if not classes:
        images = images_in(folder, suffixes)
        found = f"{images:,} images in none; move a split without labels elsewhere" if images else "none"
        raise DataError(f"{printable(folder)}: expected one folder per class, got {found}")
    for name, files in classes.items():
        if not files:
            expected = f"expected image files of a class ({', '.join(suffixes)})"
            raise DataError(f"{printable(folder / name)}: {expected}, got none")
    return classes


def _class_names(folder: Path, classes: dict[str, list[Path]]) -> tuple[str, ...]:
    """Return the names of class folders in a form that can be printed and stored.

    Raises:
        DataError: two folders have the same name in that form.
    """
    names = [printable(name) for name in classes]
    same = [name for name, count in Counter(names).items() if count > 1]
    if same:
        raise DataError(f"{printable(folder)}: expected class folders of different names, got two {same[0]!r}")
    return tuple(names)


def _read_split(folder: Path, classes: dict[str, list[Path]], options: ReadOptions) -> ReadSplit:
    files = [path for members in classes.values() for path in members]
    labels = torch.from_numpy(np.repeat(np.arange(len(classes)), [len(members) for members in classes.values()]))
    where = printable(folder)
    if options.stream:
        return read_lazily(where, lambda rows: [(printable(files[row]), files[row]) for row in rows], labels, options)
    return read_into_memory(where, ((printable(path), path) for path in files), labels, options)
