import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from oekd_fast.data import Augmentation, DataError, ImageDataset, Split, load_dataset
from oekd_fast.data.known import KNOWN

Image = pytest.importorskip("PIL.Image", reason="encoded images need Pillow, of the extra 'train'")
pytest.importorskip("sklearn", reason="needs the extra 'train'")

CLASSES = ("ant", "bee", "cat", "dog")
REAL = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def colour() -> tuple[np.ndarray, np.ndarray]:
    """40 colour images (uint8, N x H x W x C) of 4 classes, sorted by class as an image folder is."""
    images = np.random.default_rng(0).integers(0, 256, (40, 6, 6, 3), dtype=np.uint8)
    return images, np.repeat(np.arange(4), 10)


def write_arrays(root: Path, images: np.ndarray, labels: np.ndarray, split: str = "train") -> None:
    root.mkdir(parents=True, exist_ok=True)
    np.save(root / f"{split}.images.npy", images)
    np.save(root / f"{split}.labels.npy", labels)


def write_folder(root: Path, images: np.ndarray, labels: np.ndarray) -> None:
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index:03d}.png")


def hub_table(images: np.ndarray, labels: np.ndarray, names=CLASSES, image="image", label="label"):
    datasets = pytest.importorskip("datasets", reason="needs the extra 'train'")
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=list(names))})
    columns = {image: [Image.fromarray(picture) for picture in images], label: labels}
    return datasets.Dataset.from_dict(columns, features=features)


def write_parquet(path: Path, images: np.ndarray, labels: np.ndarray, **columns) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    hub_table(images, labels, **columns).to_parquet(path)


def fake_hub(monkeypatch, splits) -> list[tuple]:
    """Let `datasets.load_dataset` return `splits`, or raise it; returns the list of its calls."""
    datasets, calls = pytest.importorskip("datasets", reason="needs the extra 'train'"), []

    def load(*arguments):
        calls.append(arguments)
        if isinstance(splits, Exception):
            raise splits
        return splits

    monkeypatch.setattr(datasets, "load_dataset", load)
    return calls


def assert_same(first: Split, second: Split) -> None:
    assert torch.equal(first.images, second.images) and torch.equal(first.labels, second.labels)


def assert_same_data(first: ImageDataset, second: ImageDataset) -> None:
    for split in ("train", "validation", "test"):
        assert_same(getattr(first, split), getattr(second, split))


def fails(name: object, *parts: str, **arguments) -> DataError:
    """Loading `name` raises a DataError whose message holds `parts` in this order."""
    with pytest.raises(DataError, match=".*".join(re.escape(part) for part in parts)) as caught:
        load_dataset(str(name), **arguments)
    assert "\n" not in str(caught.value)
    return caught.value


# Digits


def test_digits():
    digits = load_dataset("digits")
    sizes = [len(split) for split in (digits.train, digits.validation, digits.test)]
    assert sizes == [1294, 144, 359] and sum(sizes) == 1797
    assert (digits.in_channels, digits.image_size, digits.num_classes) == (1, 8, 10)
    assert digits.classes == tuple("0123456789") and digits.augmentation == Augmentation(pad=1, flip=False)
    assert digits.train.images.amin() == 0 and digits.train.images.amax() == 255
    for split, share in ((digits.train, 0.72), (digits.validation, 0.08), (digits.test, 0.2)):
        counts = torch.bincount(split.labels, minlength=10)
        assert ((counts >= int(share * 174) - 1) & (counts <= share * 183 + 2)).all()


def test_seed_moves_the_validation_split_but_never_the_test():
    first, second, again = (load_dataset("digits", seed=seed) for seed in (0, 1, 0))
    assert_same(first.test, second.test)
    assert not torch.equal(first.validation.images, second.validation.images)
    assert_same_data(first, again)


# Local layouts


def test_arrays_folder_and_parquet_give_the_same_data(tmp_path, colour):
    images, labels = colour
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


def test_class_folders_without_splits_get_a_fixed_test_split(tmp_path, colour):
    write_folder(tmp_path, *colour)
    first, second = (load_dataset(str(tmp_path), seed=seed, validation_fraction=0.25) for seed in (0, 1))
    assert [len(split) for split in (first.train, first.validation, first.test)] == [24, 8, 8]
    assert first.test.labels.bincount().tolist() == [2, 2, 2, 2]
    assert_same(first.test, second.test)


@pytest.mark.parametrize("name", ["validation", "valid", "val"])
def test_validation_folder(tmp_path, colour, name):
    images, labels = colour
    write_folder(tmp_path / "train", images, labels)
    write_folder(tmp_path / name, images[::2], labels[::2])
    alone = load_dataset(str(tmp_path))
    assert torch.equal(alone.test.images, torch.from_numpy(images[::2]).permute(0, 3, 1, 2))
    assert len(alone.validation) == 4
    write_folder(tmp_path / "test", images[::5], labels[::5])
    both = load_dataset(str(tmp_path))
    assert [len(split) for split in (both.train, both.validation, both.test)] == [40, 20, 8]


def test_a_class_may_be_called_train(tmp_path, colour):
    images, _ = colour
    for name, members in (("train", images[:20]), ("plane", images[20:])):
        write_folder(tmp_path / name, members, np.zeros(20, dtype=int))
        for path in (tmp_path / name / CLASSES[0]).iterdir():
            path.rename(tmp_path / name / path.name)
        (tmp_path / name / CLASSES[0]).rmdir()
    assert load_dataset(str(tmp_path)).classes == ("plane", "train")


def test_images_may_lie_deeper_in_a_class_folder(tmp_path, colour):
    images, labels = colour
    write_folder(tmp_path / "flat", images, labels)
    for name in CLASSES:
        (tmp_path / "deep" / name).mkdir(parents=True)
        (tmp_path / "flat" / name).rename(tmp_path / "deep" / name / "images")
    assert load_dataset(str(tmp_path / "deep")).classes == CLASSES


@pytest.mark.parametrize("first_is_grey", [True, False])
def test_grey_and_colour_images_become_colour(tmp_path, colour, first_is_grey):
    images, labels = colour
    write_folder(tmp_path, images, labels)
    changed = tmp_path / CLASSES[0] / f"{0 if first_is_grey else 1:03d}.png"
    grey = Image.open(changed).convert("L")
    grey.save(changed)
    data = load_dataset(str(tmp_path))
    assert data.in_channels == 3
    everything = torch.cat([data.train.images, data.validation.images, data.test.images])
    expected = torch.from_numpy(np.array(grey)).expand(3, 6, 6)
    assert (everything == expected).flatten(1).all(1).sum() == 1


def test_grey_test_split_follows_a_colour_training_split(tmp_path, colour):
    images, labels = colour
    write_folder(tmp_path / "train", images, labels)
    write_folder(tmp_path / "test", images[..., 0], labels)
    expected = torch.from_numpy(images[..., 0])[:, None].expand(-1, 3, -1, -1)
    assert torch.equal(load_dataset(str(tmp_path)).test.images, expected)


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("LA", 1), ("P", 3), ("RGBA", 3)])
def test_other_8_bit_images(tmp_path, colour, mode, channels):
    write_folder(tmp_path, *colour)
    for path in tmp_path.rglob("*.png"):
        Image.open(path).convert(mode).save(path)
    assert load_dataset(str(tmp_path)).in_channels == channels


def test_grey_arrays_without_a_channel_axis(tmp_path, colour):
    images, labels = colour
    write_arrays(tmp_path, images[..., 0], labels.astype(np.uint8))
    data = load_dataset(str(tmp_path))
    assert data.in_channels == 1 and data.train.labels.dtype == torch.int64
    data.train.images.zero_()  # A copy: the file, mapped for reading, is not written to.
    assert np.array_equal(np.load(tmp_path / "train.images.npy"), images[..., 0])


def test_parquet_shards_are_read_in_order(tmp_path, colour):
    images, labels = colour
    for shard in range(2):
        rows = slice(shard * 20, shard * 20 + 20)
        write_parquet(tmp_path / f"train-0000{shard}-of-00002.parquet", images[rows], labels[rows])
        write_parquet(tmp_path / f"test-0000{shard}-of-00002.parquet", images[rows], labels[rows])
    test = load_dataset(str(tmp_path)).test
    assert torch.equal(test.images, torch.from_numpy(images).permute(0, 3, 1, 2))
    assert test.labels.tolist() == labels.tolist()


def test_parquet_without_hub_metadata(tmp_path, colour):
    arrow, parquet = (
        pytest.importorskip("pyarrow", reason="needs the extra 'train'"),
        pytest.importorskip("pyarrow.parquet", reason="needs the extra 'train'"),
    )
    images, labels = colour
    write_folder(tmp_path / "files", images, labels)
    encoded = [path.read_bytes() for path in sorted((tmp_path / "files").rglob("*.png"))]
    parquet.write_table(arrow.table({"png": encoded, "label": labels}), tmp_path / "train.parquet")
    plain = load_dataset(str(tmp_path))
    assert plain.classes == ("0", "1", "2", "3")
    assert_same_data(plain, load_dataset(str(tmp_path / "files")))


# A part of the training images


def split_sizes(data: ImageDataset) -> list[int]:
    return [len(split) for split in (data.train, data.validation, data.test)]


def rows_of(split: Split) -> set[bytes]:
    return {image.numpy().tobytes() for image in split.images}


@pytest.mark.parametrize("count", [4, 11, 20, 39, 40])
def test_part_of_the_training_images(tmp_path, colour, count):
    images, labels = colour
    write_folder(tmp_path / "train", images, labels)
    write_folder(tmp_path / "test", images, labels)
    write_folder(tmp_path / "val", images, labels)
    data = load_dataset(str(tmp_path), train_images=count)
    assert split_sizes(data) == [count, 40, 40]
    assert set(data.train.labels.bincount(minlength=4).tolist()) <= {count // 4, -(-count // 4)}


def test_the_part_is_the_same_for_every_seed_and_validation_images_are_of_it(colour, tmp_path):
    write_arrays(tmp_path, *colour)
    first, second = (load_dataset(str(tmp_path), train_images=20, validation_fraction=0.2, seed=s) for s in (0, 1))
    assert split_sizes(first) == split_sizes(second) == [16, 4, 8]
    assert_same(first.test, load_dataset(str(tmp_path)).test)
    parts = [rows_of(data.train) | rows_of(data.validation) for data in (first, second)]
    assert parts[0] == parts[1] and len(parts[0]) == 20
    assert rows_of(first.validation) != rows_of(second.validation)


def test_the_part_has_the_shares_of_the_classes(tmp_path, colour):
    images, labels = colour
    write_arrays(tmp_path, images, np.repeat(np.arange(4), [4, 8, 12, 16]))
    write_arrays(tmp_path, images, labels, "test")
    data = load_dataset(str(tmp_path), train_images=10, validation_fraction=0.1)
    assert (torch.cat([data.train.labels, data.validation.labels])).bincount().tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("count", [0, 3, 33])
def test_more_or_fewer_training_images_than_there_can_be(tmp_path, colour, count):
    write_folder(tmp_path, *colour)
    fails(tmp_path, "train_images must be from 4, one of each class, to 32", f"got {count}", train_images=count)


# Known names and the hub


@pytest.mark.parametrize("under_name", [True, False])
def test_known_name_in_data_dir(tmp_path, colour, under_name):
    root = tmp_path / "cifar100" if under_name else tmp_path
    for split in ("train", "test"):
        write_parquet(root / f"{split}-0.parquet", *colour, image="img", label="fine_label")
    data = load_dataset("cifar100", data_dir=tmp_path)
    assert data.augmentation == Augmentation(pad=4, flip=True) and data.classes == CLASSES


def test_known_data_by_its_name_on_the_hub_in_data_dir(tmp_path, colour):
    for split in ("train", "test"):
        write_parquet(tmp_path / "cifar100" / f"{split}-0.parquet", *colour, image="img", label="fine_label")
    data = load_dataset("uoft-cs/cifar100", data_dir=tmp_path)
    assert (data.name, data.published) == ("cifar100", KNOWN["cifar100"].published)
    fails("uoft-cs/cifar10", f"data_dir {tmp_path} must have a folder 'cifar10'", data_dir=tmp_path)


def test_known_name_in_data_dir_as_arrays(tmp_path, colour):
    write_arrays(tmp_path / "mnist", *colour)
    assert load_dataset("mnist", data_dir=tmp_path).augmentation == KNOWN["mnist"].augmentation


def test_known_name_from_the_hub(monkeypatch, colour):
    splits = {name: hub_table(*colour) for name in ("train", "test", "extra")}
    calls = fake_hub(monkeypatch, splits)
    data = load_dataset("svhn")
    assert calls == [("ufldl-stanford/svhn", "cropped_digits")]
    assert data.augmentation == KNOWN["svhn"].augmentation and len(data.test) == 40


def test_hub_name_finds_columns_and_splits(monkeypatch, colour):
    images, labels = colour
    table = hub_table(images, labels, image="picture", label="kind")
    fake_hub(monkeypatch, {"train": table, "validation": table.select(range(0, 40, 2))})
    data = load_dataset("someone/insects")
    assert data.name == "someone/insects" and data.classes == CLASSES
    assert torch.equal(data.test.images, torch.from_numpy(images[::2]).permute(0, 3, 1, 2))
    assert data.test.labels.tolist() == labels[::2].tolist() and len(data.validation) == 4


def test_hub_name_prefers_fine_labels(monkeypatch, colour):
    datasets = pytest.importorskip("datasets", reason="needs the extra 'train'")
    images, labels = colour
    table = hub_table(images, labels // 2, names=("small", "large"), label="coarse_label")
    table = table.add_column("fine_label", labels, feature=datasets.ClassLabel(names=list(CLASSES)))
    fake_hub(monkeypatch, {"train": table})
    assert load_dataset("someone/insects").classes == CLASSES


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real shards are not at {REAL}")
def test_real_shards(tmp_path):
    with np.load(REAL / "tiny_imagenet25" / "test.npz", allow_pickle=False) as shard:
        offsets, labels = shard["offsets"][:101], shard["labels"][:100]
        blobs = shard["blobs"][: offsets[-1]]
    for index, label in enumerate(labels):
        folder = tmp_path / f"{label:02d}"
        folder.mkdir(exist_ok=True)
        (folder / f"{index}.JPEG").write_bytes(blobs[offsets[index] : offsets[index + 1]].tobytes())
    data = load_dataset(str(tmp_path))
    assert data.image_size == 64 and data.in_channels == 3
    assert len(data.train) + len(data.validation) + len(data.test) == 100
    assert data.num_classes == len(set(labels.tolist()))


# Errors: arguments and names


def test_unknown_name_lists_the_nearest():
    fails("cifar", "unknown dataset 'cifar'", "cifar10", "path of an existing folder and a hub name")
    fails("zzz", "unknown dataset 'zzz'", "digits", "tiny_imagenet25")
    fails("/no/such/folder", "unknown dataset '/no/such/folder'")


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_validation_fraction_is_checked(fraction):
    fails("digits", "validation_fraction must be above 0 and below 1, got", validation_fraction=fraction)


def test_seed_is_checked():
    fails("digits", "seed must be 0 or more, got -1", seed=-1)


def test_data_dir_goes_with_known_names(tmp_path):
    fails("someone/insects", "data_dir goes with a known name", "someone/insects", data_dir=tmp_path)
    fails(tmp_path, "data_dir goes with a known name", data_dir=tmp_path)


def test_data_dir_without_the_files(tmp_path):
    how = "datasets.load_dataset('ufldl-stanford/svhn', 'cropped_digits')"
    fails("svhn", f"data_dir {tmp_path} must have a folder 'svhn' or train-*.parquet", how, data_dir=tmp_path)
    fails("tiny_imagenet25", "must have a folder 'tiny_imagenet25'", "train/<class>", data_dir=tmp_path)


def test_data_on_no_hub():
    fails("tiny_imagenet25", "'tiny_imagenet25' is on no hub: pass data_dir")


def test_hub_out_of_reach(monkeypatch):
    cause = ConnectionError("no route\nto host")
    fake_hub(monkeypatch, cause)
    error = fails("mnist", "cannot load 'ylecun/mnist'", "(ConnectionError: no route)", "data_dir")
    assert error.__cause__ is cause


def test_hub_without_train_or_columns(monkeypatch, colour):
    table = hub_table(*colour)
    fake_hub(monkeypatch, {"test": table})
    fails("a/b", "a/b must have a split 'train', got ['test']")
    fake_hub(monkeypatch, {"train": table.remove_columns("image")})
    fails("a/b", "a/b (train) must have an image column, got the columns ['label']")
    fake_hub(monkeypatch, {"train": table.remove_columns("label")})
    fails("a/b", "a/b (train) must have a class label column, got the columns ['image']")
    fake_hub(monkeypatch, {"train": table})
    fails("cifar10", "must have an image column 'img', got the columns ['image', 'label']")


@pytest.mark.parametrize(
    ("module", "name"), [("sklearn.datasets", "digits"), ("datasets", "mnist"), ("PIL.Image", "folder")]
)
def test_missing_package(monkeypatch, tmp_path, colour, module, name):
    write_folder(tmp_path, *colour)
    monkeypatch.setitem(sys.modules, module, None)
    fails(tmp_path if name == "folder" else name, f"package '{module}': pip install 'oekd_fast[train]'")


# Errors: files


def test_empty_folder(tmp_path):
    fails(tmp_path, f"{tmp_path} holds no data: expected train.images.npy")


def test_one_class(tmp_path, colour):
    images, labels = colour
    write_folder(tmp_path, images[:10], labels[:10])
    fails(tmp_path, "two classes or more are needed, got ['ant']")


def test_class_folder_without_images(tmp_path, colour):
    write_folder(tmp_path, *colour)
    (tmp_path / "emu").mkdir()
    (tmp_path / "emu" / "notes.txt").touch()
    fails(tmp_path, f"class folder {tmp_path / 'emu'} holds no image file (looked for .bmp")


def test_split_folder_without_class_folders(tmp_path, colour):
    write_folder(tmp_path / "train", *colour)
    (tmp_path / "test").mkdir()
    fails(tmp_path, f"{tmp_path / 'test'} holds no class folders")


def test_test_folder_without_train(tmp_path, colour):
    write_folder(tmp_path / "test", *colour)
    fails(tmp_path, f"{tmp_path} must have a folder 'train', got ['test']")


def test_mixed_sizes_name_two_files(tmp_path, colour):
    write_folder(tmp_path, *colour)
    odd = tmp_path / "bee" / "010.png"
    Image.new("RGB", (5, 4)).save(odd)
    fails(tmp_path, f"{tmp_path / 'ant' / '000.png'} is 6x6, {odd} is 4x5")


def test_sizes_that_differ_between_splits(tmp_path, colour):
    images, labels = colour
    write_folder(tmp_path / "train", images, labels)
    write_folder(tmp_path / "test", images[:, :5], labels)
    fails(tmp_path, "test: images must have the shape of the training images", "3x6x6, got 3x5x6")


@pytest.mark.parametrize("damage", [lambda data: b"no image", lambda data: data[: len(data) // 2], lambda data: b""])
def test_damaged_image_is_named(tmp_path, colour, damage):
    write_folder(tmp_path, *colour)
    path = tmp_path / "cat" / "025.png"
    path.write_bytes(damage(path.read_bytes()))
    fails(tmp_path, f"cannot read image {path}: ")


def test_16_bit_image(tmp_path, colour):
    write_folder(tmp_path, *colour)
    path = tmp_path / "cat" / "025.png"
    Image.fromarray(np.zeros((6, 6), dtype=np.uint16)).save(path)
    fails(tmp_path, f"image {path} must have 8 bits a channel, got Pillow mode 'I;16'")


def test_classes_of_test_folder_differ(tmp_path, colour):
    write_folder(tmp_path / "train", *colour)
    write_folder(tmp_path / "test", *colour)
    (tmp_path / "test" / "dog").rename(tmp_path / "test" / "emu")
    fails(
        tmp_path,
        "the classes of test differ from those of train (only in train: ['dog'], only in test: ['emu'])",
    )


def test_classes_of_test_table_in_another_order(tmp_path, colour):
    write_parquet(tmp_path / "train.parquet", *colour)
    write_parquet(tmp_path / "test.parquet", *colour, names=CLASSES[::-1])
    fails(tmp_path, "the classes of test differ", "the same names in another order")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (
            lambda images, labels: (images, labels - 1),
            ("train.labels.npy: labels must count from 0, got -1",),
        ),
        (lambda images, labels: (images, labels + 1), ("without gaps, got none of 0 but 1",)),
        (lambda images, labels: (images, labels * 2), ("without gaps, got none of 1 but 2",)),
        (lambda images, labels: (images, labels / 2), ("labels.npy must be integers", "float64 40")),
        (lambda images, labels: (images, labels[:, None]), ("in one dimension, got int64 40 x 1",)),
        (lambda images, labels: (images, labels[:39]), ("images.npy has 40 images but", "39 labels")),
        (
            lambda images, labels: (images / 255, labels),
            ("images.npy must be uint8", "float64 40 x 6 x 6 x 3"),
        ),
        (
            lambda images, labels: (images.transpose(0, 3, 1, 2), labels),
            ("1 to 4 channels", "40 x 3 x 6 x 6"),
        ),
        (lambda images, labels: (images[0, 0], labels), ("got uint8 6 x 3",)),
        (lambda images, labels: (images[:0], labels[:0]), ("two classes or more are needed, got []",)),
        (
            lambda images, labels: (images[::10], labels[::10]),
            ("0.2 of 4 training images leaves none for test",),
        ),
    ],
)
def test_malformed_arrays(tmp_path, colour, change, parts):
    write_arrays(tmp_path, *change(*colour))
    fails(tmp_path, *parts)


def test_label_of_the_test_split_out_of_range(tmp_path, colour):
    images, labels = colour
    write_arrays(tmp_path, images, labels)
    write_arrays(tmp_path, images, labels + 1, "test")
    fails(tmp_path, "test: labels must be in [0, 4), got 4")


def test_array_files_missing_or_damaged(tmp_path, colour):
    write_arrays(tmp_path, *colour)
    (tmp_path / "train.labels.npy").unlink()
    fails(tmp_path, f"{tmp_path / 'train.labels.npy'} is missing")
    (tmp_path / "train.labels.npy").write_bytes(b"no array")
    fails(tmp_path, f"cannot read {tmp_path / 'train.labels.npy'}: ")


def test_damaged_parquet(tmp_path, colour):
    (tmp_path / "train.parquet").write_bytes(b"no table")
    fails(tmp_path, f"cannot read {tmp_path / 'train.parquet'}: ")


@pytest.mark.parametrize(
    ("column", "parts"),
    [
        ("image", ("cannot read image in row 3 of", "(train)")),
        ("label", ("(train): column 'label' must have a label in every row",)),
    ],
)
def test_table_with_an_empty_cell(tmp_path, colour, column, parts):
    rows = hub_table(*colour)
    rows.map(lambda row, index: {column: None if index == 3 else row[column]}, with_indices=True).to_parquet(
        tmp_path / "train.parquet"
    )
    fails(tmp_path, *parts)


def test_unlabelled_test_table(tmp_path, colour):
    images, _ = colour
    write_parquet(tmp_path / "train.parquet", *colour)
    write_parquet(tmp_path / "test.parquet", images, np.full(40, -1))
    fails(tmp_path, "test: labels must be in [0, 4), got -1")


def test_table_without_rows(tmp_path, colour):
    images, labels = colour
    write_parquet(tmp_path / "train.parquet", *colour)
    write_parquet(tmp_path / "test.parquet", images[:0], labels[:0])
    fails(tmp_path, "test: no image")
