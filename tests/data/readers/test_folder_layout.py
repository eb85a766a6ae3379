"""Folders of images as they are found: names of splits, hidden files, links, and names of any bytes."""

import os
from pathlib import Path

import numpy as np
import pytest

from oekd_fast.data import load_dataset

from ...support.image_files import Image, assert_load_fails


def fill(folder: Path, count: int = 5, suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.new("RGB", (4, 4), (index, 0, 0)).save(folder / f"{index}{suffix}")


def fill_classes(folder: Path, count: int = 5, classes=("cat", "dog")) -> None:
    for name in classes:
        fill(folder / name, count)


def sizes(root: Path, **options) -> tuple[tuple[int, int, int], tuple[str, ...], tuple[str, ...]]:
    """Return the sizes of train, validation and test, the classes, and the notes without the name of the folder."""
    data = load_dataset(str(root), **options)
    notes = tuple(note.removeprefix(f"{root}: ") for note in data.notes)
    return (len(data.train), len(data.validation), len(data.test)), data.classes, notes


# Splits


@pytest.mark.parametrize(
    ("train", "validation", "test"), [("Training", "Validation", "Testing"), ("TRAIN", "dev", "Test_Set")]
)
def test_splits_are_found_by_any_usual_name(tmp_path, train, validation, test):
    for name, count in ((train, 5), (validation, 3), (test, 2)):
        fill_classes(tmp_path / name, count)
    note = f"splits: train from '{train}', validation from '{validation}', test from '{test}'"
    assert sizes(tmp_path) == ((10, 6, 4), ("cat", "dog"), (note,))


def test_splits_with_their_plain_names_need_no_note(tmp_path):
    for name in ("train", "validation", "test"):
        fill_classes(tmp_path / name)
    assert sizes(tmp_path) == ((10, 10, 10), ("cat", "dog"), ())


def test_a_validation_split_that_is_read_as_the_test_split_is_noted(tmp_path):
    for name in ("train", "val"):
        fill_classes(tmp_path / name)
    assert sizes(tmp_path) == ((9, 1, 10), ("cat", "dog"), ("splits: train from 'train', test from 'val'",))


def test_folders_around_and_inside_splits_are_entered(tmp_path):
    for name in ("seg_train/seg_train", "seg_test/seg_test"):
        fill_classes(tmp_path / "archive" / "data" / name)
    fill(tmp_path / "archive" / "data" / "seg_pred")
    where = "archive/data/seg"
    note = f"splits: train from '{where}_train/seg_train', test from '{where}_test/seg_test'; ignored: 'seg_pred'"
    assert sizes(tmp_path) == ((9, 1, 10), ("cat", "dog"), (note,))


def test_a_folder_around_classes_is_entered(tmp_path):
    fill_classes(tmp_path / "images")
    (tmp_path / "__MACOSX" / "images").mkdir(parents=True)
    assert sizes(tmp_path) == ((7, 1, 2), ("cat", "dog"), ("classes from 'images'",))


def test_a_folder_named_as_a_split_around_splits_is_entered(tmp_path):
    for name in ("train", "test"):
        fill_classes(tmp_path / "train" / name)
    assert sizes(tmp_path)[0] == (9, 1, 10)


def test_a_folder_that_is_no_split_is_ignored_and_noted(tmp_path):
    for name in ("train", "test"):
        fill_classes(tmp_path / name)
    fill(tmp_path / "unlabeled")
    note = "splits: train from 'train', test from 'test'; ignored: 'unlabeled'"
    assert sizes(tmp_path) == ((9, 1, 10), ("cat", "dog"), (note,))


def test_class_folders_with_names_of_splits_are_classes_and_noted(tmp_path):
    fill_classes(tmp_path, classes=("bus", "train", "test"))
    assert sizes(tmp_path)[1:] == (("bus", "test", "train"), ("classes, not splits: 'test', 'train'",))


@pytest.mark.parametrize(
    ("folders", "parts"),
    [
        (("train/a", "train/b", "val/a", "val/b", "dev/a", "dev/b"), ("expected one validation split", "'dev', 'val'")),
        (("train/a", "train/b", "Train/a", "Train/b"), ("expected one train split, got 'Train', 'train'",)),
        (("a", "b", "test/a", "test/b"), ("got 'test' with the folders 'a', 'b' beside 'a', 'b'",)),
        (("bus", "car", "train/steam", "train/electric"), ("got 'train' beside 'bus', 'car', which hold images too",)),
        (("train/a", "train/b", "test/a", "test/b", "a"), ("got 'test', 'train' beside 'a', which hold images",)),
        (("train/a", "train/b", "test"), ("test: expected one folder per class, got 5 images in none",)),
    ],
)
def test_ambiguous_layouts_are_refused_by_name(tmp_path, folders, parts):
    for name in folders:
        fill(tmp_path / name)
    assert_load_fails(tmp_path, *parts)


# Files that do not count


def test_hidden_and_system_files_and_folders_never_count(tmp_path):
    fill_classes(tmp_path)
    for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir", ".git/objects"):
        fill(tmp_path / "cat" / name)
    for name in ("Thumbs.db", ".DS_Store", "._0.png", "desktop.ini"):
        (tmp_path / "cat" / name).write_bytes(b"no image")
    fill_classes(tmp_path / "__MACOSX")
    assert sizes(tmp_path) == ((7, 1, 2), ("cat", "dog"), ())


def test_other_files_are_counted_in_one_note(tmp_path):
    fill_classes(tmp_path)
    for index in range(3):
        (tmp_path / "cat" / f"{index}.TXT").touch()
    (tmp_path / "dog" / "more").mkdir()
    for name in ("labels", "a.csv", "b.csv", "x.tga", "y.xml", "z.mat"):
        (tmp_path / "dog" / "more" / name).touch()
    fill(tmp_path, 2)
    (tmp_path / "README.md").touch()
    note = (
        "left out 9 files that are no images by their suffix "
        "(3 .txt, 2 .csv, 1 without, 1 .tga, 1 .xml and 1 more suffixes) and 2 images outside class folders"
    )
    assert sizes(tmp_path)[2] == (note,)


def test_every_suffix_of_an_image_is_read(tmp_path):
    for suffix in (".jpg", ".JPEG", ".jfif", ".jpe", ".png", ".bmp", ".gif", ".tiff", ".webp", ".pgm", ".jp2", ".avif"):
        for name in ("cat", "dog"):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"x{suffix}")
    assert sum(sizes(tmp_path)[0]) == 24


# Links


def test_links_to_files_and_folders_are_followed(tmp_path):
    fill_classes(tmp_path / "data", classes=("cat", "dog"))
    fill(tmp_path / "elsewhere", 4)
    fill(tmp_path / "third")
    (tmp_path / "data" / "cat" / "folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "cat" / "file.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    (tmp_path / "data" / "emu").symlink_to(tmp_path / "third")
    counts, classes, _ = sizes(tmp_path / "data")
    assert sum(counts) == 5 + 4 + 1 + 5 + 5 and classes == ("cat", "dog", "emu")


def test_loops_of_links_end_and_a_folder_is_read_once(tmp_path):
    fill_classes(tmp_path)
    cat = tmp_path / "cat"
    fill(cat / "z" / "more", 3)
    for name, to in (("a", "z/more"), ("up", ".."), ("self", "."), ("root", tmp_path), ("x.png", "x.png")):
        (cat / name).symlink_to(to)
    for name in ("y", "z"):
        (cat / name).mkdir(exist_ok=True)
        for other in ("y", "z"):
            (cat / name / f"to_{other}").symlink_to(cat / other)
    (cat / "x.png").unlink()
    assert sum(sizes(tmp_path)[0]) == 5 + 3 + 5


@pytest.mark.parametrize("to", ["missing.png", "x.png"])
def test_a_link_that_leads_nowhere_is_an_error_that_names_it(tmp_path, to):
    fill_classes(tmp_path)
    (tmp_path / "cat" / "x.png").symlink_to(to)
    assert_load_fails(tmp_path, f"cannot read image {tmp_path / 'cat' / 'x.png'}: ")


def test_a_folder_that_cannot_be_read_is_an_error_that_names_it(tmp_path, monkeypatch):
    fill_classes(tmp_path)
    scandir = os.scandir

    def refuse(path):
        if path == tmp_path / "cat":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert_load_fails(tmp_path, f"cannot read the folder {tmp_path / 'cat'}: Permission denied")


# Names


def test_class_names_of_any_bytes_become_printable(tmp_path):
    for name in (b"caf\xe9", b"a\x1b[31m\n", "Käse".encode()):
        fill(tmp_path / os.fsdecode(name))
    assert sizes(tmp_path)[1] == ("Käse", r"a\x1b[31m\n", r"caf\xe9")


def test_two_class_folders_with_the_same_printable_name_are_refused(tmp_path):
    for name in (b"caf\xe9", rb"caf\xe9"):
        fill(tmp_path / os.fsdecode(name))
    assert_load_fails(tmp_path, r"expected class folders of different names, got two 'caf\\xe9'")


@pytest.mark.parametrize("stream", [False, True])
def test_errors_and_notes_name_files_of_any_bytes_in_one_line(tmp_path, stream):
    fill_classes(tmp_path)
    (tmp_path / "cat" / os.fsdecode(b"0\n\xff.png")).write_bytes(b"no image")
    first = str(assert_load_fails(tmp_path, r"0\n\xff.png")) if not stream else ""
    assert first.encode("utf-8").isascii()
    (note,) = load_dataset(str(tmp_path), stream=stream, skip_corrupt=True).notes
    assert note.endswith(r"cat/0\n\xff.png") and "\n" not in note


def test_the_order_of_images_is_that_of_their_paths(tmp_path):
    for index, name in enumerate(("cat/b/0.png", "cat/a.png", "cat/b.png", "cat/b/1.png", "dog/x.png", "dog/y.png")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((2, 2), index, dtype=np.uint8)).save(tmp_path / name)
    for split in ("train", "test"):
        (tmp_path / "data" / split).mkdir(parents=True)
        for name in ("cat", "dog"):
            (tmp_path / "data" / split / name).symlink_to(tmp_path / name)
    assert load_dataset(str(tmp_path / "data")).test.images[:, 0, 0, 0].tolist() == [1, 0, 3, 2, 4, 5]
