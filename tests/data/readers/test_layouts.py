"""Arrays, image folders and parquet files: what is read from each layout."""

import numpy as np
import pytest
import torch

from oekd_fast.data import Augmentation, load_dataset

from ...support.image_files import (
    CLASSES,
    Image,
    assert_same_data,
    assert_same_split,
    write_arrays,
    write_folder,
    write_parquet,
)


def test_arrays_folders_and_parquet_files_give_the_same_data(tmp_path, labelled):
    images, labels = labelled
    for split, rows in (("train", slice(None)), ("test", slice(None, None, 5))):
        write_arrays(tmp_path / "arrays", images[rows], labels[rows], split)
        write_folder(tmp_path / "folder" / split, images[rows], labels[rows])
        write_parquet(tmp_path / "parquet" / f"{split}-00000-of-00001.parquet", images[rows], labels[rows])
    arrays, folder, parquet = (load_dataset(str(tmp_path / name)) for name in ("arrays", "folder", "parquet"))
    assert_same_data(arrays, folder)
    assert_same_data(arrays, parquet)
    assert torch.equal(arrays.test.images, torch.from_numpy(images[::5]).permute(0, 3, 1, 2))
    assert [len(split) for split in (arrays.train, arrays.validation, arrays.test)] == [36, 4, 8]
    assert folder.classes == parquet.classes == CLASSES and arrays.classes == ("0", "1", "2", "3")
    assert arrays.augmentation == Augmentation(pad=1, flip=False)


def test_class_folders_without_splits_have_the_same_test_split_for_every_seed(tmp_path, labelled):
    write_folder(tmp_path, *labelled)
    first, second = (load_dataset(str(tmp_path), seed=seed, validation_fraction=0.25) for seed in (0, 1))
    assert [len(split) for split in (first.train, first.validation, first.test)] == [24, 8, 8]
    assert first.test.labels.bincount().tolist() == [2, 2, 2, 2]
    assert_same_split(first.test, second.test)


@pytest.mark.parametrize("name", ["validation", "valid", "val"])
def test_a_validation_folder_is_the_test_split_unless_there_is_one(tmp_path, labelled, name):
    images, labels = labelled
    write_folder(tmp_path / "train", images, labels)
    write_folder(tmp_path / name, images[::2], labels[::2])
    alone = load_dataset(str(tmp_path))
    assert torch.equal(alone.test.images, torch.from_numpy(images[::2]).permute(0, 3, 1, 2))
    assert len(alone.validation) == 4
    write_folder(tmp_path / "test", images[::5], labels[::5])
    both = load_dataset(str(tmp_path))
    assert [len(split) for split in (both.train, both.validation, both.test)] == [40, 20, 8]


def test_a_class_named_train(tmp_path, labelled):
    images, _ = labelled
    for name, members in (("train", images[:20]), ("plane", images[20:])):
        write_folder(tmp_path / name, members, np.zeros(20, dtype=int))
        for path in (tmp_path / name / CLASSES[0]).iterdir():
            path.rename(tmp_path / name / path.name)
        (tmp_path / name / CLASSES[0]).rmdir()
    assert load_dataset(str(tmp_path)).classes == ("plane", "train")


def test_jpeg_files_with_an_upper_case_suffix(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
    for index, picture in enumerate(pictures):
        folder = tmp_path / f"{index % 4:02d}"
        folder.mkdir(exist_ok=True)
        image = Image.fromarray(picture)
        (image.convert("L") if index == 5 else image).save(folder / f"{index}.JPEG")
    data = load_dataset(str(tmp_path))
    assert (data.image_size, data.in_channels, data.num_classes) == (64, 3, 4)
    assert len(data.train) + len(data.validation) + len(data.test) == 40


def test_images_in_nested_folders_of_a_class(tmp_path, labelled):
    images, labels = labelled
    write_folder(tmp_path / "flat", images, labels)
    for name in CLASSES:
        (tmp_path / "deep" / name).mkdir(parents=True)
        (tmp_path / "flat" / name).rename(tmp_path / "deep" / name / "images")
    assert load_dataset(str(tmp_path / "deep")).classes == CLASSES


@pytest.mark.parametrize("first_is_grey", [True, False])
def test_grey_and_colour_images_become_colour(tmp_path, labelled, first_is_grey):
    images, labels = labelled
    write_folder(tmp_path, images, labels)
    changed = tmp_path / CLASSES[0] / f"{0 if first_is_grey else 1:03d}.png"
    grey = Image.open(changed).convert("L")
    grey.save(changed)
    data = load_dataset(str(tmp_path))
    assert data.in_channels == 3
    everything = torch.cat([data.train.images, data.validation.images, data.test.images])
    expected = torch.from_numpy(np.array(grey)).expand(3, 6, 6)
    assert (everything == expected).flatten(1).all(1).sum() == 1


def test_a_grey_test_split_beside_a_colour_training_split_becomes_colour(tmp_path, labelled):
    images, labels = labelled
    write_folder(tmp_path / "train", images, labels)
    write_folder(tmp_path / "test", images[..., 0], labels)
    expected = torch.from_numpy(images[..., 0])[:, None].expand(-1, 3, -1, -1)
    assert torch.equal(load_dataset(str(tmp_path)).test.images, expected)


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("LA", 1), ("P", 3), ("RGBA", 3)])
def test_other_8_bit_images(tmp_path, labelled, mode, channels):
    write_folder(tmp_path, *labelled)
    for path in tmp_path.rglob("*.png"):
        Image.open(path).convert(mode).save(path)
    assert load_dataset(str(tmp_path)).in_channels == channels


def test_grey_arrays_without_a_channel_axis(tmp_path, labelled):
    images, labels = labelled
    write_arrays(tmp_path, images[..., 0], labels.astype(np.uint8))
    data = load_dataset(str(tmp_path))
    assert data.in_channels == 1 and data.train.labels.dtype == torch.int64
    data.train.images.zero_()  # a copy, so the memory-mapped file does not change
    assert np.array_equal(np.load(tmp_path / "train.images.npy"), images[..., 0])


def test_parquet_shards_are_read_in_order(tmp_path, labelled):
    images, labels = labelled
    for shard in range(2):
        rows = slice(shard * 20, shard * 20 + 20)
        write_parquet(tmp_path / f"train-0000{shard}-of-00002.parquet", images[rows], labels[rows])
        write_parquet(tmp_path / f"test-0000{shard}-of-00002.parquet", images[rows], labels[rows])
    test = load_dataset(str(tmp_path)).test
    assert torch.equal(test.images, torch.from_numpy(images).permute(0, 3, 1, 2))
    assert test.labels.tolist() == labels.tolist()


def test_parquet_without_hub_metadata(tmp_path, labelled):
    arrow, parquet = (
        pytest.importorskip("pyarrow", reason="needs the extra 'train'"),
        pytest.importorskip("pyarrow.parquet", reason="needs the extra 'train'"),
    )
    images, labels = labelled
    write_folder(tmp_path / "files", images, labels)
    encoded = [path.read_bytes() for path in sorted((tmp_path / "files").rglob("*.png"))]
    parquet.write_table(arrow.table({"png": encoded, "label": labels}), tmp_path / "train.parquet")
    plain = load_dataset(str(tmp_path))
    assert plain.classes == ("0", "1", "2", "3")
    assert_same_data(plain, load_dataset(str(tmp_path / "files")))
