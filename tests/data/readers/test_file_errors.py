"""Missing, damaged and inconsistent files: the errors name the file and what was expected."""

import numpy as np
import pytest

from ...support.image_files import (
    CLASSES,
    Image,
    assert_load_fails,
    hub_table,
    write_arrays,
    write_folder,
    write_parquet,
)


def test_empty_folder(tmp_path):
    assert_load_fails(tmp_path, f"{tmp_path}: expected train.images.npy")


def test_a_single_class(tmp_path, labelled):
    images, labels = labelled
    write_folder(tmp_path, images[:10], labels[:10])
    assert_load_fails(tmp_path, "expected at least two classes, got ['ant']")


def test_class_folder_without_images(tmp_path, labelled):
    write_folder(tmp_path, *labelled)
    (tmp_path / "emu").mkdir()
    (tmp_path / "emu" / "notes.txt").touch()
    assert_load_fails(tmp_path, f"{tmp_path / 'emu'}: expected image files of a class (.apng", ", got none")


def test_split_folder_without_class_folders(tmp_path, labelled):
    write_folder(tmp_path / "train", *labelled)
    (tmp_path / "test").mkdir()
    assert_load_fails(tmp_path, f"{tmp_path / 'test'}: expected one folder per class, got none")


def test_test_folder_without_train(tmp_path, labelled):
    write_folder(tmp_path / "test", *labelled)
    assert_load_fails(tmp_path, f"{tmp_path}: expected a split 'train', got 'test'")


def test_an_image_of_another_size_is_named_with_the_first(tmp_path, labelled):
    write_folder(tmp_path, *labelled)
    odd = tmp_path / "bee" / "010.png"
    Image.new("RGB", (5, 4)).save(odd)
    assert_load_fails(tmp_path, f"{odd}: expected 6x6 pixels", f"the size of {tmp_path / 'ant' / '000.png'}, got 4x5")


def test_image_sizes_differ_between_splits(tmp_path, labelled):
    images, labels = labelled
    write_folder(tmp_path / "train", images, labels)
    write_folder(tmp_path / "test", images[:, :5], labels)
    assert_load_fails(tmp_path, "test: expected images of shape 3x6x6 (C x H x W) as in train, got 3x5x6")


@pytest.mark.parametrize("damage", [lambda data: b"no image", lambda data: data[: len(data) // 2], lambda data: b""])
def test_damaged_image_is_named(tmp_path, labelled, damage):
    write_folder(tmp_path, *labelled)
    path = tmp_path / "cat" / "025.png"
    path.write_bytes(damage(path.read_bytes()))
    assert_load_fails(tmp_path, f"cannot read image {path}: ")


def test_16_bit_image(tmp_path, labelled):
    write_folder(tmp_path, *labelled)
    path = tmp_path / "cat" / "025.png"
    Image.fromarray(np.zeros((6, 6), dtype=np.uint16)).save(path)
    assert_load_fails(tmp_path, f"image {path}: expected 8 bits per channel, grey or in colour, got Pillow mode 'I;16'")


def test_class_folders_of_the_test_split_differ(tmp_path, labelled):
    write_folder(tmp_path / "train", *labelled)
    write_folder(tmp_path / "test", *labelled)
    (tmp_path / "test" / "dog").rename(tmp_path / "test" / "emu")
    assert_load_fails(
        tmp_path,
        "test: expected the classes of train in the same order, got ",
        "classes only in train: ['dog'], only in test: ['emu']",
    )


def test_classes_of_the_test_table_in_another_order(tmp_path, labelled):
    write_parquet(tmp_path / "train.parquet", *labelled)
    write_parquet(tmp_path / "test.parquet", *labelled, names=CLASSES[::-1])
    assert_load_fails(tmp_path, "test: expected the classes of train", "got the same classes in another order")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (
            lambda images, labels: (images, labels - 1),
            ("train.labels.npy: expected labels that count from 0, got -1",),
        ),
        (lambda images, labels: (images, labels + 1), ("without gaps, got 1 but no 0",)),
        (lambda images, labels: (images, labels * 2), ("without gaps, got 2 but no 1",)),
        (
            lambda images, labels: (images, labels / 2),
            ("labels.npy: expected integers", "got float64 40"),
        ),
        (lambda images, labels: (images, labels[:, None]), ("in one dimension, got int64 40 x 1",)),
        (lambda images, labels: (images, labels[:39]), ("labels.npy: expected 40 labels, one per image, got 39",)),
        (
            lambda images, labels: (images / 255, labels),
            ("images.npy: expected uint8", "got float64 40 x 6 x 6 x 3"),
        ),
        (
            lambda images, labels: (images.transpose(0, 3, 1, 2), labels),
            ("1 to 4 channels", "40 x 3 x 6 x 6"),
        ),
        (lambda images, labels: (images[0, 0], labels), ("got uint8 6 x 3",)),
        (lambda images, labels: (images[:0], labels[:0]), ("expected at least two classes, got []",)),
        (
            lambda images, labels: (images[::10], labels[::10]),
            ("expected enough training images for a test split of 0.2, got 4",),
        ),
    ],
)
def test_malformed_arrays(tmp_path, labelled, change, parts):
    write_arrays(tmp_path, *change(*labelled))
    assert_load_fails(tmp_path, *parts)


def test_a_label_of_the_test_split_is_out_of_range(tmp_path, labelled):
    images, labels = labelled
    write_arrays(tmp_path, images, labels)
    write_arrays(tmp_path, images, labels + 1, "test")
    assert_load_fails(tmp_path, "test: expected labels in [0, 4), got 4")


def test_array_files_missing_or_damaged(tmp_path, labelled):
    write_arrays(tmp_path, *labelled)
    (tmp_path / "train.labels.npy").unlink()
    assert_load_fails(tmp_path, f"{tmp_path / 'train.labels.npy'}: the file is missing")
    (tmp_path / "train.labels.npy").write_bytes(b"no array")
    assert_load_fails(tmp_path, f"cannot read {tmp_path / 'train.labels.npy'}: ")


def test_damaged_parquet(tmp_path, labelled):
    (tmp_path / "train.parquet").write_bytes(b"no table")
    assert_load_fails(tmp_path, f"cannot read {tmp_path / 'train.parquet'}: ")


@pytest.mark.parametrize(
    ("column", "parts"),
    [
        ("image", ("cannot read image in row 3 of", "(train)")),
        ("label", ("(train): expected a label in every row of column 'label', got none in row 3",)),
    ],
)
def test_table_with_an_empty_cell(tmp_path, labelled, column, parts):
    rows = hub_table(*labelled)
    rows.map(lambda row, index: {column: None if index == 3 else row[column]}, with_indices=True).to_parquet(
        tmp_path / "train.parquet"
    )
    assert_load_fails(tmp_path, *parts)


def test_unlabelled_test_table(tmp_path, labelled):
    images, _ = labelled
    write_parquet(tmp_path / "train.parquet", *labelled)
    write_parquet(tmp_path / "test.parquet", images, np.full(40, -1))
    assert_load_fails(tmp_path, "(test): expected labels in [0, 4), got -1 in row 0 of column 'label'")


def test_table_without_rows(tmp_path, labelled):
    images, labels = labelled
    write_parquet(tmp_path / "train.parquet", *labelled)
    write_parquet(tmp_path / "test.parquet", images[:0], labels[:0])
    assert_load_fails(tmp_path, "test: expected at least one image, got none")
