"""Names and arguments of `load_dataset`: digits, subsets, known data sets and the hub."""

import sys

import numpy as np
import pytest
import torch

from oekd_fast.data import Augmentation, ImageDataset, Split, load_dataset
from oekd_fast.data.known import KNOWN

from ..support.image_files import (
    CLASSES,
    assert_load_fails,
    assert_same_data,
    assert_same_split,
    hub_table,
    write_arrays,
    write_folder,
    write_parquet,
)

pytest.importorskip("sklearn", reason="needs the extra 'train'")


def fake_hub(monkeypatch, splits) -> list[tuple]:
    """Replace `datasets.load_dataset` by a function that returns or raises `splits`; return the list of its calls."""
    datasets, calls = pytest.importorskip("datasets", reason="needs the extra 'train'"), []

    def load(*arguments):
        calls.append(arguments)
        if isinstance(splits, Exception):
            raise splits
        return splits

    monkeypatch.setattr(datasets, "load_dataset", load)
    return calls


# Digits


def test_digits_splits_and_facts():
    digits = load_dataset("digits")
    sizes = [len(split) for split in (digits.train, digits.validation, digits.test)]
    assert sizes == [1294, 144, 359] and sum(sizes) == 1797
    assert (digits.in_channels, digits.image_size, digits.num_classes) == (1, 8, 10)
    assert digits.classes == tuple("0123456789") and digits.augmentation == Augmentation(pad=1, flip=False)
    assert digits.train.images.amin() == 0 and digits.train.images.amax() == 255
    for split, share in ((digits.train, 0.72), (digits.validation, 0.08), (digits.test, 0.2)):
        counts = torch.bincount(split.labels, minlength=10)
        assert ((counts >= int(share * 174) - 1) & (counts <= share * 183 + 2)).all()


def test_splits_that_were_held_out_are_named(tmp_path, labelled):
    assert load_dataset("digits").held_out == ("test", "validation")
    write_arrays(tmp_path, *labelled, "train")
    write_arrays(tmp_path, *labelled, "test")
    assert load_dataset(str(tmp_path)).held_out == ("validation",)


def test_seed_changes_the_validation_split_and_not_the_test_split():
    first, second, again = (load_dataset("digits", seed=seed) for seed in (0, 1, 0))
    assert_same_split(first.test, second.test)
    assert not torch.equal(first.validation.images, second.validation.images)
    assert_same_data(first, again)


# Subsets of the training images


def split_sizes(data: ImageDataset) -> list[int]:
    return [len(split) for split in (data.train, data.validation, data.test)]


def rows_of(split: Split) -> set[bytes]:
    return {image.numpy().tobytes() for image in split.images}


@pytest.mark.parametrize("count", [4, 11, 20, 39, 40])
def test_a_subset_has_the_requested_size_and_balanced_classes(tmp_path, labelled, count):
    images, labels = labelled
    write_folder(tmp_path / "train", images, labels)
    write_folder(tmp_path / "test", images, labels)
    write_folder(tmp_path / "val", images, labels)
    data = load_dataset(str(tmp_path), train_images=count)
    assert split_sizes(data) == [count, 40, 40]
    assert set(data.train.labels.bincount(minlength=4).tolist()) <= {count // 4, -(-count // 4)}


def test_the_subset_does_not_depend_on_the_seed_and_contains_the_validation_images(labelled, tmp_path):
    write_arrays(tmp_path, *labelled)
    first, second = (load_dataset(str(tmp_path), train_images=20, validation_fraction=0.2, seed=s) for s in (0, 1))
    assert split_sizes(first) == split_sizes(second) == [16, 4, 8]
    assert_same_split(first.test, load_dataset(str(tmp_path)).test)
    subsets = [rows_of(data.train) | rows_of(data.validation) for data in (first, second)]
    assert subsets[0] == subsets[1] and len(subsets[0]) == 20
    assert rows_of(first.validation) != rows_of(second.validation)


def test_the_subset_keeps_the_class_shares(tmp_path, labelled):
    images, labels = labelled
    write_arrays(tmp_path, images, np.repeat(np.arange(4), [4, 8, 12, 16]))
    write_arrays(tmp_path, images, labels, "test")
    data = load_dataset(str(tmp_path), train_images=10, validation_fraction=0.1)
    assert (torch.cat([data.train.labels, data.validation.labels])).bincount().tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("count", [0, 3, 33])
def test_train_images_outside_the_valid_range(tmp_path, labelled, count):
    write_folder(tmp_path, *labelled)
    assert_load_fails(
        tmp_path, "train_images: expected 4 (one per class) to 32 (all images of ", f"got {count}", train_images=count
    )


# Known names and the hub


@pytest.mark.parametrize("under_name", [True, False])
def test_known_name_reads_parquet_files_from_data_dir(tmp_path, labelled, under_name):
    root = tmp_path / "cifar100" if under_name else tmp_path
    for split in ("train", "test"):
        write_parquet(root / f"{split}-0.parquet", *labelled, image="img", label="fine_label")
    data = load_dataset("cifar100", data_dir=tmp_path)
    assert data.augmentation == Augmentation(pad=4, flip=True) and data.classes == CLASSES


def test_hub_name_of_known_data_reads_from_data_dir(tmp_path, labelled):
    for split in ("train", "test"):
        write_parquet(tmp_path / "cifar100" / f"{split}-0.parquet", *labelled, image="img", label="fine_label")
    data = load_dataset("uoft-cs/cifar100", data_dir=tmp_path)
    assert (data.name, data.published) == ("cifar100", KNOWN["cifar100"].published)
    assert_load_fails(
        "uoft-cs/cifar10", f"data_dir: expected a folder 'cifar10' or train-*.parquet in {tmp_path}", data_dir=tmp_path
    )


def test_known_name_reads_arrays_from_data_dir(tmp_path, labelled):
    write_arrays(tmp_path / "mnist", *labelled)
    assert load_dataset("mnist", data_dir=tmp_path).augmentation == KNOWN["mnist"].augmentation


def test_known_name_loads_from_the_hub(monkeypatch, labelled):
    splits = {name: hub_table(*labelled) for name in ("train", "test", "extra")}
    calls = fake_hub(monkeypatch, splits)
    data = load_dataset("svhn")
    assert calls == [("ufldl-stanford/svhn", "cropped_digits")]
    assert data.augmentation == KNOWN["svhn"].augmentation and len(data.test) == 40


def test_columns_and_splits_of_a_hub_name_are_found(monkeypatch, labelled):
    images, labels = labelled
    table = hub_table(images, labels, image="picture", label="kind")
    fake_hub(monkeypatch, {"train": table, "validation": table.select(range(0, 40, 2))})
    data = load_dataset("someone/insects")
    assert data.name == "someone/insects" and data.classes == CLASSES
    assert torch.equal(data.test.images, torch.from_numpy(images[::2]).permute(0, 3, 1, 2))
    assert data.test.labels.tolist() == labels[::2].tolist() and len(data.validation) == 4


def test_fine_labels_are_preferred(monkeypatch, labelled):
    datasets = pytest.importorskip("datasets", reason="needs the extra 'train'")
    images, labels = labelled
    table = hub_table(images, labels // 2, names=("small", "large"), label="coarse_label")
    table = table.add_column("fine_label", labels, feature=datasets.ClassLabel(names=list(CLASSES)))
    fake_hub(monkeypatch, {"train": table})
    assert load_dataset("someone/insects").classes == CLASSES


# Errors


def test_unknown_name_lists_the_nearest_names():
    assert_load_fails(
        "cifar",
        "dataset: expected a known name, an existing folder or a hub name (owner/name), got 'cifar'; ",
        "cifar10",
    )
    assert_load_fails("zzz", "got 'zzz'", "digits", "tiny_imagenet25")
    assert_load_fails("/no/such/folder", "got '/no/such/folder'")


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_validation_fraction_is_checked(fraction):
    assert_load_fails("digits", "validation_fraction: expected a number in (0, 1), got", validation_fraction=fraction)


def test_seed_is_checked():
    assert_load_fails("digits", "seed: expected an integer >= 0, got -1", seed=-1)


def test_data_dir_needs_a_known_name(tmp_path):
    assert_load_fails(
        "someone/insects", "data_dir: expected a dataset with a known name", "got 'someone/insects'", data_dir=tmp_path
    )
    assert_load_fails(tmp_path, "data_dir: expected a dataset with a known name", data_dir=tmp_path)


def test_data_dir_without_the_files(tmp_path):
    instruction = "datasets.load_dataset('ufldl-stanford/svhn', 'cropped_digits')"
    assert_load_fails("svhn", f"'svhn' or train-*.parquet in {tmp_path}, got neither; ", instruction, data_dir=tmp_path)
    assert_load_fails("tiny_imagenet25", "expected a folder 'tiny_imagenet25'", "train/<class>", data_dir=tmp_path)


def test_data_that_is_not_on_the_hub_needs_data_dir():
    assert_load_fails("tiny_imagenet25", "data_dir: expected a folder with tiny_imagenet25, which is not on the hub")


def test_unreachable_hub(monkeypatch):
    cause = ConnectionError("no route\nto host")
    fake_hub(monkeypatch, cause)
    error = assert_load_fails("mnist", "cannot load 'ylecun/mnist'", "(ConnectionError: no route)", "data_dir")
    assert error.__cause__ is cause


def test_hub_without_train_or_columns(monkeypatch, labelled):
    table = hub_table(*labelled)
    fake_hub(monkeypatch, {"test": table})
    assert_load_fails("a/b", "a/b: expected a split 'train', got 'test'")
    fake_hub(monkeypatch, {"train": table.remove_columns("image")})
    assert_load_fails("a/b", "a/b (train): expected an image column, got the columns 'label' (ClassLabel of 4)")
    fake_hub(monkeypatch, {"train": table.remove_columns("label")})
    assert_load_fails("a/b", "a/b (train): expected a class label column, got the columns 'image' (Image)")
    fake_hub(monkeypatch, {"train": table})
    assert_load_fails(
        "cifar10", "expected an image column 'img', got the columns 'image' (Image), 'label' (ClassLabel of 4)"
    )


@pytest.mark.parametrize(
    ("module", "name"), [("sklearn.datasets", "digits"), ("datasets", "mnist"), ("PIL.Image", "folder")]
)
def test_missing_optional_package(monkeypatch, tmp_path, labelled, module, name):
    write_folder(tmp_path, *labelled)
    monkeypatch.setitem(sys.modules, module, None)
    assert_load_fails(tmp_path if name == "folder" else name, f"package '{module}': pip install 'oekd_fast[train]'")
